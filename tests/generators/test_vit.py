"""A ViT, which has no BatchNorm, is distilled without data: timm's from a whole configuration."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from data.spec import InputSpec
from generators.patches import PatchSimilarity
from generators.rounds import Rounds
from generators.trained import TrainedGenerator
from generators.variables import Pixels
from models.classifier import Classifier
from models.stages import torchvision_stages
from tests.generators.small import inversion, objective
from tests.test_contracts import learn, make, same, snapshot

VIT = ["teacher=vit_digits", "~teacher.model.width", "teacher.model.embed_dim=16"]
VIT += ["teacher.model.num_heads=2"]
PATCHES = ["~synthesis.losses.bn", "+synthesis.losses.patches={weight:0.1,"]
PATCHES[1] += "loss:{_target_:generators.patches.PatchSimilarity}}"


@pytest.mark.parametrize(
    ("method", "overrides", "kind"),
    [
        ("psaq_vit", [], Rounds),
        ("reverie", PATCHES, TrainedGenerator),
        ("reverie", ["~synthesis.losses.bn"], TrainedGenerator),
        ("dfad", [], TrainedGenerator),
    ],
)
def test_a_vit_of_timm_teaches_without_data(method: str, overrides: list[str], kind: type) -> None:
    parts, teacher = make(method, *VIT, *overrides)
    assert isinstance(parts.source.synthesizer, kind)  # type: ignore[attr-defined]
    assert teacher is not None
    assert not teacher.batchnorms()
    held, before = snapshot(teacher), snapshot(parts.student)
    learn(parts, 5)
    assert same(held, snapshot(teacher))
    assert all(v.isfinite().all() for v in snapshot(parts.student).values())
    assert not torch.equal(before["module.linear.weight"], parts.student.module.linear.weight)
    assert parts.source.counts()["real_training_inputs_read"] == 0


@pytest.mark.parametrize("method", ["reverie", "cmi", "fast_dfkd", "nayer"])
def test_methods_that_invert_batchnorm_name_those_that_do_not(method: str) -> None:
    with pytest.raises(ValueError, match=r"no BatchNorm layers.*psaq_vit"):
        make(method, *VIT)


SPEC = InputSpec((3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def torchvision_vit() -> Classifier:
    torch.manual_seed(0)
    size: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_classes": 4}
    vit = VisionTransformer(**size, num_layers=4, num_heads=2, hidden_dim=12, mlp_dim=24)
    nn.init.normal_(vit.heads.head.weight)
    vit.taps, vit.channels_last = torchvision_stages(vit)
    return Classifier(vit, SPEC).eval().requires_grad_(False)


def test_a_vit_of_torchvision_is_inverted_by_its_patches() -> None:
    vit = torchvision_vit()
    loss = PatchSimilarity(vit)
    assert len(loss.teacher_taps) == 4
    source = inversion(
        teacher=vit,
        student=torchvision_vit(),
        variable=Pixels(vit.spec),
        objective=objective(patches=loss),
        optimizer=functools.partial(torch.optim.Adam, lr=0.1),
        iterations=20,
    )
    entropies = []
    source.synthesizer.observe.objective.register_forward_hook(
        lambda _, a, b: entropies.append(-b.total)
    )
    source.next()
    assert len(entropies) == 20
    assert entropies[-1] > entropies[0] + 0.1  # diverse patches, where those of noise are alike
