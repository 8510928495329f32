"""SimKD's student over every family of backbones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from data.spec import InputSpec
from models.classifier import Classifier
from models.digits import DigitsCNN
from models.lenet import LeNet5
from models.resnet_cifar import resnet_cifar
from models.simkd import SimKDStudent
from models.vgg import VGG
from models.wrn import WideResNet

SPEC = InputSpec((1, 16, 16), (0.0, 1.0), (0.3,), (0.4,))
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "digits": lambda: DigitsCNN(1, 10, 4),
    "resnet": lambda: resnet_cifar(1, 10, 8),
    "wrn": lambda: WideResNet(1, 10, 10, 1),
    "vgg": lambda: VGG(1, 10, 8),
}


def make(name: str, features: int = 12) -> SimKDStudent:
    torch.manual_seed(0)
    return SimKDStudent(1, 10, (16, 16), BACKBONES[name](), features)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_backbone_is_the_network_up_to_its_pooling(name: str) -> None:
    torch.manual_seed(0)
    whole, student = BACKBONES[name]().eval(), make(name).eval()
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        pooled = Classifier(whole, SPEC, taps=("pooled",))(x).features["pooled"]
        last = student.backbone(SPEC.normalize(x))
    torch.testing.assert_close(last.mean(dim=(2, 3)), pooled)


@pytest.mark.parametrize("name", BACKBONES)
def test_taps_fire_and_are_what_they_say(name: str) -> None:
    student = make(name).eval()
    network = Classifier(student, SPEC, taps=tuple(student.taps))
    with torch.no_grad():
        outputs = network(torch.rand(2, 1, 16, 16))
    assert "stage1" in outputs.features
    projected = outputs.features["projected"]
    assert projected.shape[1] == 12
    assert (projected >= 0).all()
    torch.testing.assert_close(projected.mean(dim=(2, 3)), outputs.features["pooled"])
    torch.testing.assert_close(student.linear(outputs.features["pooled"]), outputs.logits)
    assert outputs.logits.shape == (2, 10)


def test_the_projector_is_the_papers() -> None:
    shapes = [tuple(m.weight.shape) for m in make("digits").projector if isinstance(m, nn.Conv2d)]
    assert shapes == [(6, 8, 1, 1), (6, 6, 3, 3), (12, 6, 1, 1)]


def test_building_changes_neither_mode_nor_statistics() -> None:
    student = make("wrn")
    assert all(m.training for m in student.modules())
    layers = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(not m.running_mean.any() for m in layers)  # type: ignore[union-attr]


def test_every_parameter_is_trained() -> None:
    student = make("resnet")
    student(torch.rand(4, 1, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"head of LeNet5 begins: choose a ResNet"):
        SimKDStudent(1, 10, (32, 32), LeNet5(1, 10), 12)
    with pytest.raises(ValueError, match="at least 1, but are 0 and 2"):
        make("digits", features=0)
