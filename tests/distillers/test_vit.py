"""Self-attention relations between transformers of timm and torchvision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.base import side
from distillers.distiller import Distiller
from distillers.edges import resolve_taps, student_taps
from distillers.vit import MiniLM, attention_at
from models.classifier import Classifier, Outputs
from models.digits import DigitsCNN
from models.external import timm_model, torchvision_model

SPEC = InputSpec((3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
timm = pytest.importorskip("timm")


def of_timm(width: int, heads: int = 2, patch: int = 16, **settings: Any) -> nn.Module:
    settings = {"img_size": 32, "embed_dim": width, "depth": 2, "num_heads": heads} | settings
    return timm_model("vit_tiny_patch16_224", 3, 5, patch_size=patch, **settings)


def of_torchvision(width: int, heads: int = 2) -> nn.Module:
    settings = {"image_size": 32, "hidden_dim": width, "num_heads": heads, "num_layers": 2}
    sizes = {"patch_size": 16, "mlp_dim": width}
    from torchvision.models import VisionTransformer

    from models.external import _with_taps
    from models.stages import torchvision_stages

    torch.manual_seed(0)
    network = VisionTransformer(**settings, **sizes, num_classes=5)
    return _with_taps(network, torchvision_stages(network), {"logits": "heads.head"})


def distiller(student: nn.Module, teacher: nn.Module, **settings: Any) -> Distiller:
    """As the engine makes it, of MiniLM alone."""
    objective = Objective({"minilm": Weighted(MiniLM(**settings))})
    guide = Classifier(teacher, SPEC)
    resolve_taps(objective, student, guide)
    learner = Classifier(student, SPEC, taps=student_taps(objective))
    return Distiller(learner, objective, guide, Runtime(device="cpu"))


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def relation(x: Tensor, y: Tensor, heads: int) -> list[list[list[float]]]:
    """R [head][i][j] of the vectors x, y [N, D] of one input."""
    width = x.shape[1] // heads
    found = []
    for h in range(heads):
        rows = []
        for i in range(len(x)):
            part = slice(h * width, (h + 1) * width)
            logits = [float(x[i, part] @ y[j, part]) / math.sqrt(width) for j in range(len(y))]
            total = sum(math.exp(v) for v in logits)
            rows.append([math.exp(v) / total for v in logits])
        found.append(rows)
    return found


@pytest.mark.parametrize("relations", [("qk", "vv"), ("qq", "kk", "vv")])
def test_minilm_by_hand(relations: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    made = distiller(of_timm(12), of_timm(24, heads=4), relations=relations, relation_heads=3)
    loss: Any = made.objective.losses["minilm"].loss
    s, t = torch.randn(2, 5, 3 * 12), torch.randn(2, 5, 3 * 24)
    total = 0.0
    for b in range(2):
        for letters in relations:
            both = []
            for x in (s[b], t[b]):
                parts = dict(zip("qkv", x.chunk(3, dim=1), strict=True))
                both.append(relation(parts[letters[0]], parts[letters[1]], 3))
            for h in range(3):
                for i in range(5):
                    for q, p in zip(both[0][h][i], both[1][h][i], strict=True):
                        total += p * math.log(p / q)
    empty = torch.zeros(2, 1)
    ours, theirs = Outputs(empty, {"attention": s}), Outputs(empty, {"attention": t})
    value = loss(ours, theirs, Batch(empty))
    assert value.item() == pytest.approx(total / (2 * 3 * 5), rel=1e-4)
    assert loss(ours, ours, Batch(empty)).abs() < 1e-6


def true_maps(module: nn.Module, x: Tensor) -> Tensor:
    """The last layer's attention maps [B, heads, N, N], as the network computes them unfused."""
    found: list[Tensor] = []
    if hasattr(module, "blocks"):
        last = module.blocks[-1].attn
        last.fused_attn = False
        last.attn_drop.register_forward_hook(lambda m, args, out: found.append(args[0]))
        module(x)
        return found[0]
    last = module.encoder.layers[-1]
    last.ln_1.register_forward_hook(lambda m, args, out: found.append(out))
    module(x)
    (y,) = found
    return last.self_attention(y, y, y, need_weights=True, average_attn_weights=False)[1]


@pytest.mark.parametrize("make", [of_timm, of_torchvision])
def test_with_as_many_relation_heads_these_are_the_networks_attention_maps(make: Any) -> None:
    torch.manual_seed(0)
    module = make(12).eval()
    for p in module.parameters():  # biases too, and attention that is not uniform
        nn.init.normal_(p, std=0.5)
    network = Classifier(module, SPEC, taps=["attention"])
    with torch.no_grad():
        outputs = network(images())
        loss = MiniLM(relation_heads=2)
        loss.prepare(side(network, outputs), side(network, outputs))
        (((qkv, _)),) = loss._read(outputs, outputs)
        maps = loss._log_relation(qkv, "qk").exp()
        expected = true_maps(module, SPEC.normalize(images()))
    assert maps.std() > 0.05
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(of_timm, of_timm), (of_timm, of_torchvision), (of_torchvision, of_timm)],
)
def test_it_trains_the_student_and_nothing_else(student: Any, teacher: Any) -> None:
    torch.manual_seed(0)
    made = distiller(student(16), teacher(24, heads=3))
    assert not list(made.objective.parameters())
    assert not any("objective" in key for key in made.state_dict())
    optimizer = torch.optim.Adam(made.student.parameters(), lr=0.01)
    x, values = images(), []
    for _ in range(12):
        losses = made(Batch(x))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        values.append(losses.total.item())
    assert values[-1] < 0.5 * values[0]
    named = dict(made.student.module.named_parameters())
    reached = {name for name, p in named.items() if p.grad is not None and p.grad.any()}
    weights = [n for n in named if n.endswith(("qkv.weight", "in_proj_weight"))]
    assert set(weights) <= reached
    assert not any("head" in name for name in reached)
    assert made.teacher is not None
    assert all(p.grad is None for p in made.teacher.parameters())


def test_it_is_finite_at_extremes() -> None:
    torch.manual_seed(0)
    made = distiller(of_timm(16), of_timm(24, heads=3))
    loss: Any = made.objective.losses["minilm"].loss
    empty = torch.zeros(2, 1)
    for scale in (0.0, 1e-20, 500.0):
        for rows in (1, 2):
            s = (scale * torch.randn(rows, 5, 48)).requires_grad_()
            t = -scale * torch.randn(rows, 5, 72)
            value = loss(
                Outputs(empty, {"attention": s}),
                Outputs(empty, {"attention": t}),
                Batch(empty),
            )
            value.backward()
            assert value.isfinite()
            assert s.grad is not None
            assert s.grad.isfinite().all()


@pytest.mark.parametrize(
    ("student", "settings", "message"),
    [
        (lambda: of_timm(16), {"relation_heads": 16}, "does not divide both widths, 16 and 24"),
        (lambda: of_timm(16, patch=8), {}, "the student has 17 and the teacher 5"),
        (lambda: of_timm(16), {"taps": [{"student": "norm", "teacher": "attention"}]}, "'norm'"),
        (
            lambda: of_torchvision(16),
            {"taps": [{"student": "encoder.layers.encoder_layer_1.ln_2", "teacher": "attention"}]},
            "the student's tap .* gives none",
        ),
    ],
)
def test_mistakes_in_networks(student: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distiller(student(), of_timm(24), **settings)


def test_a_network_without_attention_has_no_such_tap() -> None:
    with pytest.raises(ValueError, match="no tap 'attention' in DigitsCNN; it has: stage1"):
        distiller(DigitsCNN(3, 5), of_timm(24))


@pytest.mark.parametrize("relations", [(), ("q",), ("qx",), ("qkv",)])
def test_relations_are_pairs(relations: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="a relation is a pair out of q, k and v"):
        MiniLM(relations=relations)
    with pytest.raises(ValueError, match="relation_heads must be"):
        MiniLM(relation_heads=0)


def test_any_layer_can_be_tapped() -> None:
    network = Classifier(of_timm(16), SPEC, taps=["blocks.0.attn.qkv"])
    assert attention_at(side(network, network.eval()(images(2))), "blocks.0.attn.qkv", "x") is None


def test_torchvisions_own_transformer_names_its_attention() -> None:
    module = torchvision_model("vit_b_16", 3, 5, image_size=32)
    assert module.taps["attention"] == "encoder.layers.encoder_layer_11.ln_1"
