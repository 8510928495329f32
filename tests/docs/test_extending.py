"""The examples in docs/extending.md are code that runs, and keep the contracts they show."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from core.build import build
from core.check import check_node
from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.base import Side
from distillers.step import Roles, Step, Teacher
from generators.base import Made, Synthesis
from generators.mixture import Mixture
from models.classifier import Classifier, Outputs
from models.digits import DigitsCNN

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "extending.md").read_text() + (DOCS / "schemes.md").read_text()
SPEC = InputSpec((1, 16, 16), range=(-1.0, 1.0))


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each python block as the module that its first line names."""
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        name = block.splitlines()[0].removeprefix("# ").removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        package, _, leaf = name.rpartition(".")
        monkeypatch.setattr(importlib.import_module(package), leaf, module, raising=False)
        exec(compile(block, name, "exec"), module.__dict__)


def part(target: str) -> Any:
    """The part that the YAML block with this target builds, after the configuration's check."""
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        if target in block:
            node = yaml.safe_load(block.replace("${data.size}", "null"))
            assert not check_node(node, "page")
            available = {"spec": SPEC, "num_classes": 4, "in_channels": 1, "batch_size": 6}
            return build(node, **available, runtime=Runtime(device="cpu"))
    raise AssertionError(target)


def test_transform() -> None:
    transform, x = part("data.coarse"), 2 * torch.rand(6, 1, 16, 16) - 1
    seen = transform.measured(SPEC, x)
    assert seen.shape == (1, 8, 8)
    assert seen.range == (0.0, 1.0)
    expected = (x.view(6, 1, 8, 2, 8, 2).mean((3, 5)) + 1) / 2
    torch.testing.assert_close(transform(x), expected)


def test_synthesis_loss() -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    value = part("Margin")["margin"]["loss"](Synthesis(torch.rand(6, 1, 16, 16), Outputs(logits)))
    value.backward()
    assert value.shape == ()
    assert value < 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_transfer_loss() -> None:
    loss = part("Hint")["hint"]["loss"]
    stages = {"stage1": "a", "stage2": "b"}
    loss.resolve(stages, stages)
    assert loss.student_taps == loss.teacher_taps == ("stage2",)
    s = Outputs(torch.zeros(6, 4), {"stage2": torch.randn(6, 8, 4, 4, requires_grad=True)})
    t = Outputs(torch.zeros(6, 4), {"stage2": torch.randn(6, 16, 4, 4)})
    loss.prepare(Side(s), Side(t))
    x = torch.zeros(6, 1)
    loss(s, t, Batch(x)).backward()
    assert s.features["stage2"].grad is not None
    assert [p.grad is not None for p in loss.parameters()] == [True]


def test_generator() -> None:
    x = part("MLP")(torch.randn(6, 64))
    assert x.shape == (6, 1, 16, 16)
    assert x.min() >= -1
    assert x.max() <= 1
    assert x.min() < 0


def test_stream() -> None:
    first, second = (sys.modules["generators.first"].FirstImages() for _ in range(2))
    x = torch.rand(8, *SPEC.shape)
    first.learn(Made(x))
    first.learn(Made(torch.zeros(8, *SPEC.shape)))
    second.load_state_dict(first.state_dict())
    a, b = (s.draw(5, torch.Generator().manual_seed(0)).input for s in (first, second))
    assert torch.equal(a, b)
    assert (torch.cdist(a.flatten(1), x.flatten(1)).amin(1) == 0).all()
    assert Mixture.__name__ in PAGE


def test_synthesizer() -> None:
    first, second = (part("UniformSource")["source"] for _ in range(2))
    x = first.next().input
    assert x.shape == (6, 1, 16, 16)
    assert -1 <= x.min() < 0 < x.max() <= 1
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.next().input, second.next().input)
    assert first.counts()["images_synthesized"] == 12


def test_model() -> None:
    model = Classifier(part("Tiny"), SPEC, taps=["stage1", "pooled"])
    outputs = model(torch.rand(6, 1, 16, 16))
    assert outputs.logits.shape == (6, 4)
    assert {k: tuple(v.shape) for k, v in outputs.features.items()} == {
        "stage1": (6, 8, 8, 8),
        "pooled": (6, 8),
    }


def test_data_set() -> None:
    dataset = part("stripes.stripes")["dataset"]
    images, labels = dataset.open("train").batch(slice(0, 6))
    assert images.shape == (6, 1, 16, 16)
    assert set(labels.tolist()) <= {0, 1}


def test_scheme() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    [text] = [block for block in blocks if "distillers.median.Median" in block]
    node = yaml.safe_load(text)
    assert node["distiller"]["losses"]["kd"]["teacher"] == "median"
    node["teachers"]["median"]["of"] = ["teacher", "second", "student"]
    median = build(node["teachers"]["median"], Teacher)
    networks = {n: Classifier(DigitsCNN(1, 4, 4), SPEC).eval() for n in median.of}
    frozen = {n: networks[n] for n in ("teacher", "second")}
    roles = Roles({"student": networks["student"]}, frozen, {"median": median}, {}, Runtime("cpu"))
    x = torch.rand(3, *SPEC.shape)
    answer = Step(roles, Batch(x)).answer("median").logits
    expected = torch.stack([n(x).logits for n in networks.values()]).sort(0).values[1]
    torch.testing.assert_close(answer, expected.detach())
