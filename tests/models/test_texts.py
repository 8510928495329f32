"""Networks for texts: they learn in every parameter, and their taps are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import nn

from core.check import SPECIAL
from data.spec import InputSpec
from models.classifier import Classifier
from models.pretrained import load_classifier
from models.texts import BothWays, Embedding, TextTransformer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"
NAMES = sorted(path.stem for path in CONFIGS.glob("text_*.yaml"))
WORDS = ("<pad>", "<unk>", *"abcdefg")
SPEC = InputSpec((9, 5), modality="text", words=WORDS)
HOST = torch.device("cpu")


def built(name: str) -> nn.Module:
    node: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))  # type: ignore[assignment]
    options = {k: v for k, v in node.items() if k not in SPECIAL and k != "_training_"}
    if node["_target_"].endswith("Transformer"):
        options["input_size"] = (5,)
    network: nn.Module = get_object(node["_target_"])(9, 7, **options)
    return network


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str) -> None:
    module = built(name).train()
    logits = module(SPEC.noise(8, HOST))
    assert logits.shape == (8, 7)
    F.cross_entropy(logits, torch.arange(8) % 7).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_taps_are_what_they_say(name: str) -> None:
    module = built(name)
    network = Classifier(module, SPEC, taps=module.taps).eval()  # type: ignore[arg-type]
    x = SPEC.noise(3, HOST).requires_grad_()
    found = network(x)
    assert torch.equal(found.features["logits"], found.logits)
    assert found.features["pooled"].dim() == 2
    stages = [f for tap, f in found.features.items() if tap.startswith("stage")]
    assert all(f.shape[2:] == (1, 5) for f in stages)  # maps over a line of 5 places
    named = dict(module.named_modules())
    for tap, path in module.taps.items():  # type: ignore[union-attr]
        if tap.startswith("stage"):
            alone: list[torch.Tensor] = []
            handle = named[path].register_forward_hook(lambda m, a, out: alone.append(out))  # noqa: B023
            module.eval()(x)
            handle.remove()
            own = alone[0] if path not in getattr(module, "channels_last", ()) else alone[0].mT
            torch.testing.assert_close(found.features[tap][:, :, 0], own)
    head = module.get_submodule(module.taps["logits"])  # type: ignore[index]
    torch.testing.assert_close(head(found.features["pooled"]), found.logits)
    [gradient] = torch.autograd.grad(found.logits.square().sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = built(name)(SPEC.noise(4, HOST))
    assert logits.isfinite().all()


def test_an_embedding_is_a_table() -> None:
    layer, ids = Embedding(9, 6), torch.tensor([[3, 1, 8, 0, 3]])
    rows = F.embedding(ids, layer.weight).transpose(1, 2)
    torch.testing.assert_close(layer(SPEC.decode(ids)), rows)
    mixed = 0.25 * SPEC.decode(ids) + 0.75 * SPEC.decode(ids.flip(1))
    torch.testing.assert_close(layer(mixed), 0.25 * rows + 0.75 * rows.flip(2))


def test_states_are_those_of_a_gru() -> None:
    ours, theirs = BothWays(4, 3), nn.GRU(4, 3, batch_first=True, bidirectional=True)
    for cell, end in ((ours.forth, ""), (ours.back, "_reverse")):
        for name, value in cell.named_parameters():
            getattr(theirs, f"{name}_l0{end}").data.copy_(value)
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2))[0])


def test_a_plain_file_needs_no_mean_and_std(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words are not normalised; which ones the network knows is assumed."""
    torch.save(built("text_cnn").state_dict(), tmp_path / "plain.pth")
    found = load_classifier(built("text_cnn"), tmp_path / "plain.pth", SPEC, classes="abcdefg")
    assert found.spec == SPEC
    assert "plain.pth does not name its words: those of the data" in capsys.readouterr().out


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads=3 does not divide width=16"):
        TextTransformer(9, 2, (5,), width=16, heads=3)
