"""Names of stages, pooled features and logits in networks of torchvision and timm."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import mobilenet_v2

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.attention import AttentionTransfer
from distillers.distiller import Distiller
from distillers.edges import resolve_taps, student_taps
from models.classifier import Classifier
from models.digits import DigitsCNN
from models.external import timm_model, torchvision_model
from models.features import to_map
from models.stages import channels_last, dry_pass

TORCHVISION: list[tuple[str, dict[str, Any], list[str]]] = [
    ("resnet18", {}, ["layer1", "layer2", "layer3", "layer4"]),
    ("vgg11_bn", {}, ["features.6", "features.13", "features.20", "features.27"]),
    ("mobilenet_v2", {}, ["features.3", "features.6", "features.13", "features.18"]),
    ("mobilenet_v3_small", {}, ["features.1", "features.3", "features.8", "features.12"]),
    ("shufflenet_v2_x0_5", {}, ["conv1", "stage2", "stage3", "conv5"]),
    ("densenet121", {}, [f"features.denseblock{i}" for i in (1, 2, 3)] + ["features.norm5"]),
    ("efficientnet_b0", {}, ["features.2", "features.3", "features.5", "features.8"]),
    ("convnext_tiny", {}, ["features.1", "features.3", "features.5", "features.7"]),
    ("swin_t", {}, ["features.1", "features.3", "features.5", "features.7"]),
    ("regnet_y_400mf", {}, [f"trunk_output.block{i}" for i in (1, 2, 3, 4)]),
    (
        "vit_b_16",
        {"image_size": 64},
        [f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8, 11)],
    ),
]
TIMM: list[tuple[str, dict[str, Any], list[str]]] = [
    ("resnet18", {}, ["layer1", "layer2", "layer3", "layer4"]),
    ("mobilenetv2_050", {}, ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]),
    ("regnety_002", {}, ["s1", "s2", "s3", "s4"]),
    ("resnetv2_18", {}, ["stages.0", "stages.1", "stages.2", "stages.3"]),
    ("test_convnext", {}, ["stages.0", "stages.1", "stages.2", "stages.3"]),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "embed_dim": 12, "num_heads": (1, 2, 3, 4)},
        ["layers.0", "layers.1", "layers.2", "layers.3"],
    ),
    ("vit_tiny_patch16_224", {"img_size": 64}, [f"blocks.{i}" for i in (2, 5, 8, 11)]),
    ("mixer_s32_224", {"img_size": 64}, [f"blocks.{i}" for i in (1, 3, 5, 7)]),
]
CASES = [(torchvision_model, *case) for case in TORCHVISION] + [
    (timm_model, *case) for case in TIMM
]
SPEC = InputSpec((3, 64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)


def stages(network: Any) -> list[str]:
    return [path for name, path in network.taps.items() if name.startswith("stage")]


def features(network: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        outputs = Classifier(network, SPEC, taps=network.taps).eval()(torch.rand(2, 3, 64, 64))
    if "logits" in outputs.features:
        assert torch.equal(outputs.features["logits"], outputs.logits)
    return outputs.features


@pytest.mark.parametrize(
    ("make", "name", "kwargs", "expected"), CASES, ids=[f"{c[0].__name__}-{c[1]}" for c in CASES]
)
def test_stages(make: Any, name: str, kwargs: dict[str, Any], expected: list[str]) -> None:
    if make is timm_model:
        pytest.importorskip("timm")
    network = make(name, 3, 7, **kwargs)
    assert stages(network) == expected
    seen = features(network)
    maps = [to_map(seen[f"stage{i + 1}"]) for i in range(len(expected))]
    for earlier, later in itertools.pairwise(maps):
        assert later.shape[2] <= earlier.shape[2]
        assert later.shape[2] == later.shape[3]
    assert maps[-1].shape[2] <= 4
    if "pooled" in seen:
        assert seen["pooled"].shape[0] == 2
        assert seen["pooled"].flatten(1).dim() == 2
    assert ("logits" in seen) == (name != "resnetv2_18")  # whose classifier is a convolution


def test_maps_with_the_channels_last_are_turned() -> None:
    network: Any = torchvision_model("swin_t", 3, 7).eval()
    x = torch.rand(1, 3, 64, 64)
    view = Classifier(network, SPEC).frozen(["stage1"])
    with torch.no_grad():
        direct, seen = network.features[:2](SPEC.normalize(x)), view(x)
    assert direct.shape == (1, 16, 16, 96)
    torch.testing.assert_close(seen.features["stage1"], direct.permute(0, 3, 1, 2))
    assert not channels_last((1, 96, 16, 16))
    assert not channels_last((1, 16, 16, 16))


def test_pooled_is_what_the_classifier_reads() -> None:
    for name in ("mobilenet_v2", "convnext_tiny"):
        network: Any = torchvision_model(name, 3, 7)
        seen = features(network)
        torch.testing.assert_close(network.classifier[-1](seen["pooled"]), seen["logits"])
    plain = mobilenet_v2(num_classes=7)
    assert [*torchvision_model("mobilenet_v2", 3, 7).state_dict()] == [*plain.state_dict()]


def test_a_dry_pass_leaves_no_trace() -> None:
    network = torchvision_model("mobilenet_v2", 3, 7)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    assert dry_pass(network, ["features.18"], (3, 224, 224)) == {"features.18": (1, 1280, 7, 7)}
    assert dry_pass(network, ["features.18"], (4, 224, 224)) == {}
    assert network.training
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_hooks for m in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_is_not_one_tensor_names_no_stage() -> None:
    pytest.importorskip("timm")
    network: Any = timm_model("hrnet_w18_small", 3, 7)  # whose stages are lists of maps
    assert stages(network) == []
    assert {"pooled", "logits"} <= set(network.taps)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_attention_transfer_between_torchvisions_and_ours(name: str) -> None:
    ours, theirs = DigitsCNN(3, 7, width=4), torchvision_model(name, 3, 7)
    for network, other in ((theirs, ours), (ours, theirs)):
        objective = Objective({"at": Weighted(AttentionTransfer())})
        teacher = Classifier(other, SPEC).requires_grad_(False)
        resolve_taps(objective, network, teacher)
        student = Classifier(network, SPEC, taps=student_taps(objective)).requires_grad_(True)
        distiller = Distiller(student, objective, teacher, Runtime(device="cpu"))
        x = torch.rand(4, 3, 64, 64)
        loss = distiller(Batch(x)).total
        loss.backward()
        assert loss > 0
        assert any(p.grad is not None and p.grad.any() for p in student.parameters())
        student.zero_grad(set_to_none=True)
