"""Networks for signals, spectrograms and vectors: all parameters learn, and their taps are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import Tensor, nn

from core.check import SPECIAL, parameters_of
from data.spec import Expected, InputSpec
from engine.choices import written
from engine.config import plain
from engine.start import _students
from models.classifier import Classifier
from models.signals import M5, ResNet1d, StridedConv1d
from models.spectrograms import TDNN
from models.vectors import MLP

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"
SHAPES = {
    "models.signals.M5": (2, 512),
    "models.signals.ResNet1d": (2, 512),
    "models.spectrograms.TDNN": (2, 32, 16),
    "models.vectors.MLP": (9,),
}
NAMES = [p.stem for p in sorted(CONFIGS.glob("*.yaml")) if any(t in p.read_text() for t in SHAPES)]


def built(name: str) -> tuple[nn.Module, InputSpec]:
    node: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))  # type: ignore[assignment]
    shape = SHAPES[node["_target_"]]
    options = {k: v for k, v in node.items() if k not in SPECIAL}
    kind = get_object(node["_target_"])
    if "input_size" in parameters_of(kind)[0]:
        options["input_size"] = shape[1:]
    module = kind(shape[0], 7, **options)
    return module, InputSpec(shape, (-1.0, 1.0), (0.0,) * shape[0], (0.5,) * shape[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str) -> None:
    module, spec = built(name)
    logits = module.train()(spec.noise(6, torch.device("cpu")))
    assert logits.shape == (6, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_taps_are_what_they_say(name: str) -> None:
    module, spec = built(name)
    network = Classifier(module, spec, taps=module.taps).eval()  # type: ignore[arg-type]
    found = network(spec.noise(3, torch.device("cpu")))
    assert torch.equal(found.features["logits"], found.logits)
    maps = [x for tap, x in found.features.items() if tap.startswith("stage")]
    assert len(maps) >= 2
    assert all(x.dim() == (2 if len(spec.shape) == 1 else 4) for x in maps)
    last = maps[-1] if maps[-1].dim() == 2 else maps[-1].mean((2, 3))
    torch.testing.assert_close(found.features["pooled"], last)


def test_m5_is_the_papers() -> None:
    """Dai et al., table 1: 0.56 million parameters, for 32,000 samples."""
    network = M5(1, 10)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(0.56e6, rel=0.02)
    assert network(torch.randn(2, 1, 32_000)).shape == (2, 10)


def test_the_residual_network_is_the_papers() -> None:
    """Table 1 of the same: 34 layers with weights, and 4 million parameters."""
    network = ResNet1d(1, 10)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(4e6, rel=0.02)
    weighted = [m for m in network.modules() if isinstance(m, (nn.Conv1d, nn.Linear))]
    assert len([m for m in weighted if getattr(m, "kernel_size", None) != (1,)]) == 34


def test_a_residual_block_adds_its_shortcut() -> None:
    block = ResNet1d(1, 3, 4, [2]).stages[0][1].eval()  # type: ignore[index]
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 8)
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize("depths", [[], [1, 0]])
def test_a_residual_network_has_blocks(depths: list[int]) -> None:
    with pytest.raises(ValueError, match="the blocks of each stage"):
        ResNet1d(1, 3, 4, depths)


def test_a_tdnn_sees_time_shifted_and_bands_as_they_are() -> None:
    """The mean over time forgets when something was, and nothing forgets in which band."""
    network = TDNN(1, 3, (8, 40), [4, 4], context=3).eval()
    x = torch.zeros(1, 1, 8, 40)
    x[:, :, 2, 10:14] = 1
    later, higher = x.roll(8, 3), x.roll(1, 2)
    torch.testing.assert_close(network(later), network(x))
    assert not torch.allclose(network(higher), network(x))
    assert TDNN(1, 3, (8, 1), [4], context=5)(torch.randn(2, 1, 8, 1)).shape == (2, 3)


@pytest.mark.parametrize("options", [{"widths": []}, {"context": 4}])
def test_a_tdnn_of_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="widths of at least one layer and an odd context"):
        TDNN(1, 3, (8, 8), **options)


@pytest.mark.parametrize(("teacher", "proposed"), [("tdnn", True), ("resnet8x4", False)])
def test_a_tdnn_is_proposed_to_teachers_of_spectrograms(teacher: str, proposed: bool) -> None:
    nodes = {n: plain(written("model", n)) for n in ("tdnn", "tdnn_small", "resnet20", "resnet8x4")}
    known = Expected({"shape": (3, 32, 32), "classes": ("a", "b")}, {})
    text = _students({"model": nodes[teacher]}, known, (3, 32, 32), nodes)[1]
    assert ("tdnn_small" in text) == proposed
    assert "the teacher has" in text


@pytest.mark.parametrize("size", [(), (512,)])
def test_a_tdnn_of_signals_says_what_to_do(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="show it signals by transform=log_mel"):
        TDNN(1, 3, size)


@pytest.mark.parametrize("network", [M5(1, 3, 8), ResNet1d(1, 3, 8, [1, 1, 1, 1])])
@pytest.mark.parametrize("length", [16, 100, 4096])
def test_networks_take_any_length(network: nn.Module, length: int) -> None:
    assert network(torch.randn(2, 1, length)).shape == (2, 3)


def test_features_over_a_line_carry_the_gradient() -> None:
    """What a loss sees of [B, C, L] is [B, C, 1, L], and on the way to the logits."""
    network = Classifier(M5(1, 3, 8), InputSpec((1, 512), (-1.0, 1.0)), taps=["stage2"]).eval()
    outputs = network(network.spec.noise(2, torch.device("cpu")))
    feature = outputs.features["stage2"]
    assert feature.shape == (2, 8, 1, 8)
    [gradient] = torch.autograd.grad(outputs.logits.sum(), feature)
    assert gradient.abs().sum() > 0


def test_tokens_are_declared() -> None:
    class Tokens(nn.Module):
        tokens = ("inside",)

        def __init__(self) -> None:
            super().__init__()
            self.inside, self.other = nn.Linear(4, 5), nn.Conv1d(1, 5, 4, 4)
            self.linear = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.inside(x.unflatten(2, (-1, 4)).squeeze(1))
            return self.linear(tokens.mean(1) + self.other(x).mean(2))

    network = Classifier(Tokens(), InputSpec((1, 16), (-1.0, 1.0)), taps=["inside", "other"])
    features = network(torch.randn(2, 1, 16)).features
    assert features["inside"].shape == (2, 4, 5)
    assert features["other"].shape == (2, 5, 1, 4)


def test_an_mlp_has_a_hidden_layer() -> None:
    with pytest.raises(ValueError, match="at least one hidden layer"):
        MLP(3, 2, [])


@pytest.mark.parametrize(("channels", "kernel", "stride"), [(1, 80, 4), (3, 6, 2), (2, 5, 5)])
def test_a_strided_convolution_is_that_of_pytorch(channels: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    conv = StridedConv1d(channels, 4, kernel, stride, kernel // 2).double()
    for length in (kernel, 97, 100):
        x = torch.randn(2, channels, length, dtype=torch.float64, requires_grad=True)
        expected = torch.nn.functional.conv1d(x, conv.weight, conv.bias, stride, kernel // 2)
        found = conv(x)
        torch.testing.assert_close(found, expected)
        seed = torch.randn_like(expected)
        for p in (x, conv.weight, conv.bias):
            pair = (torch.autograd.grad(y, p, seed, retain_graph=True) for y in (found, expected))
            torch.testing.assert_close(*pair)
