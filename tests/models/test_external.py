"""Networks of torchvision and timm by name."""

import sys

import pytest
import torch
from torch import nn

from data.spec import InputSpec
from distillers.base import side
from models.check import check_network
from models.classifier import Classifier
from models.external import timm_model, torchvision_model

SPEC = InputSpec((3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


def features(module: nn.Module) -> dict[str, torch.Tensor]:
    classifier = Classifier(module, SPEC, taps=module.taps)
    with torch.no_grad():
        outputs = classifier.eval()(torch.rand(2, 3, 32, 32))
    assert torch.equal(outputs.features["logits"], outputs.logits)
    assert outputs.logits.shape == (2, 7)
    return outputs.features


def test_torchvision_resnet18() -> None:
    module = torchvision_model("resnet18", 3, 7)
    seen = features(module)
    assert [*seen] == ["stage1", "stage2", "stage3", "stage4", "pooled", "logits"]
    assert seen["pooled"].shape == (2, 512)
    torch.testing.assert_close(module.fc(seen["pooled"]), seen["logits"])


def test_torchvision_keys_are_torchvisions() -> None:
    from torchvision.models import resnet18, shufflenet_v2_x0_5, vit_b_16

    assert [*torchvision_model("resnet18", 3, 10).state_dict()] == [*resnet18().state_dict()]
    ours = torchvision_model("vit_b_16", 3, 10, image_size=32)
    assert [*ours.state_dict()] == [*vit_b_16(image_size=32).state_dict()]
    ours = torchvision_model("shufflenet_v2_x0_5", 3, 10)
    assert [*ours.state_dict()] == [*shufflenet_v2_x0_5().state_dict()]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mobilenet_v2", {}),
        ("vit_b_16", {"image_size": 32}),
        ("densenet121", {}),
        ("shufflenet_v2_x0_5", {}),
    ],
)
def test_torchvision_pooled_enters_the_last_linear_layer(name: str, kwargs: dict[str, int]) -> None:
    """Behind dropout, or alone in a container: the head that losses such as SRRL read."""
    classifier = Classifier(torchvision_model(name, 3, 7, **kwargs), SPEC, taps=["pooled"])
    with torch.no_grad():
        outputs = classifier.eval()(torch.rand(2, 3, 32, 32))
    head = side(classifier, outputs).head
    assert head is not None
    torch.testing.assert_close(head(outputs.features["pooled"]), outputs.logits)


def test_nothing_is_computed_in_place() -> None:
    for module in (torchvision_model("resnet18", 3, 7), timm_model("resnet18", 3, 7)):
        classifier = Classifier(module, SPEC, taps=["bn1"])
        with torch.no_grad():
            assert (classifier.eval()(torch.rand(2, 3, 32, 32)).features["bn1"] < 0).any()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_other_torchvision_networks(name: str) -> None:
    assert "logits" in features(torchvision_model(name, 3, 7))


def test_training_gives_a_tensor() -> None:
    module = torchvision_model("googlenet", 3, 7)
    assert module.train()(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_squeezenet_names_no_false_logits() -> None:
    assert "logits" not in torchvision_model("squeezenet1_1", 3, 7).taps


def test_timm_resnet18_takes_any_channels() -> None:
    pytest.importorskip("timm")
    module = timm_model("resnet18", 1, 7).eval()
    assert module(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    seen = features(timm_model("resnet18", 3, 7))
    assert [*seen] == ["stage1", "stage2", "stage3", "stage4", "pooled", "logits"]
    assert seen["pooled"].shape == (2, 512)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("vit_tiny_patch16_224", {"img_size": 32}), ("test_byobnet", {}), ("test_convnext", {})],
)
def test_timm_pooled_enters_the_classifier(name: str, kwargs: dict[str, int]) -> None:
    pytest.importorskip("timm")
    module = timm_model(name, 3, 7, **kwargs).eval()
    seen = features(module)
    torch.testing.assert_close(module.get_classifier()(seen["pooled"]), seen["logits"])


def test_mistakes_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"'resnt18'; did you mean resnet18"):
        torchvision_model("resnt18", 3, 10)
    with pytest.raises(ValueError, match=r"'resnt18'; did you mean resnet18"):
        timm_model("resnt18", 3, 10)
    with pytest.raises(ValueError, match="no classifier 'hf-hub:a/b'"):  # would be downloaded
        timm_model("hf-hub:a/b", 3, 10)
    with pytest.raises(ValueError, match=r"3 channels, but the data has 1.*timm"):
        torchvision_model("resnet18", 1, 10)
    for make in (torchvision_model, timm_model):
        with pytest.raises(ValueError, match="unexpected keyword argument 'widht'"):
            make("resnet18", 3, 10, widht=2)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[timm\]'"):
        timm_model("resnet18", 3, 10)


def test_a_network_for_another_size_is_reported() -> None:
    pytest.importorskip("timm")
    classifier = Classifier(timm_model("vit_tiny_patch16_224", 3, 7), SPEC)
    with pytest.raises(ValueError, match="VisionTransformer cannot take inputs of shape 3x32x32"):
        check_network(classifier, 7)
