"""Every network of configs/model: it builds, has the published size, and its taps are true."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from core.check import SPECIAL
from data.spec import InputSpec
from models.classifier import Classifier
from models.lenet import LeNet5
from models.mobilenet import InvertedResidual, MobileNetV2
from models.resnet import ZeroPadShortcut, resnet
from models.resnet_cifar import resnet_cifar
from models.shufflenet import GroupUnit, SplitUnit, shuffled, shufflenet_v2
from models.vgg import VGG
from models.wrn import WideResNet

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"
NAMES = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
# which have tests of their own
OTHERS = (
    "models.external",
    "models.simkd",
    "models.signals",
    "models.spectrograms",
    "models.vectors",
    "models.texts",
    "???",
)
OURS = [n for n in NAMES if not any(o in (CONFIGS / f"{n}.yaml").read_text() for o in OTHERS)]
# one of each family is enough where a test takes a forward pass in training at full size
LIGHT = [*(n for n in OURS if n.startswith(("lenet", "digits"))), "resnet20", "resnet8x4"]
LIGHT += ["resnet18", "wrn_16_2", "vgg8", "vgg11"]
LIGHT += ["mobilenetv2_half", "shufflenetv1", "shufflenetv2"]


def build(name: str, in_channels: int = 3, num_classes: int = 10) -> nn.Module:
    node: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    arguments = {k: v for k, v in node.items() if k not in SPECIAL}
    return get_object(node["_target_"])(in_channels, num_classes, **arguments)


def size(name: str) -> int:
    return 8 if name.startswith("digits") else 32


def classifier(module: nn.Module, taps: tuple[str, ...] = (), side: int = 32) -> Classifier:
    spec = InputSpec((3, side, side), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return Classifier(module, spec, taps=taps)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", OURS)
def test_builds_and_gives_logits(name: str) -> None:
    module = build(name, num_classes=7).eval()
    x = torch.randn(2, 3, size(name), size(name))
    with torch.no_grad():
        logits = module(x)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", OURS)
def test_trains_every_parameter_from_one_channel(name: str) -> None:
    module = build(name, in_channels=1)
    side = size(name) if name in LIGHT else 16
    F.cross_entropy(module(torch.randn(4, 1, side, side)), torch.arange(4)).backward()
    idle = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize("name", OURS)
def test_taps_are_what_they_say(name: str) -> None:
    module = build(name).eval()
    network = classifier(module, tuple(module.taps), size(name))
    with torch.no_grad():
        outputs = network(torch.rand(2, 3, size(name), size(name)))
    assert list(outputs.features) == list(module.taps)
    pooled = outputs.features["pooled"]
    assert pooled.dim() == 2
    assert torch.equal(outputs.features["logits"], outputs.logits)
    head = module.get_submodule(module.taps["logits"])
    rest = module.fc1 if isinstance(module, LeNet5) else None
    hidden = pooled if rest is None else rest(pooled).relu()
    torch.testing.assert_close(head(hidden), outputs.logits)
    stages = [t for t in module.taps if t.startswith("stage")]
    sides = [outputs.features[t].shape[-1] for t in stages]
    assert sides == sorted(sides, reverse=True)
    assert stages == [f"stage{i + 1}" for i in range(len(stages))]


# Published or widely reported: He et al. (0.27, 0.46, 0.66, 0.85, 1.7 M), kuangliu's ResNets,
# WRN (2.2, 0.6, 0.2, 0.7 M), and CRD's for 100 classes (resnet8x4 1.23 M, vgg8 3.97 M,
# MobileNetV2 0.81 M, ShuffleNet 0.95 M, ShuffleNetV2 1.36 M, ...).
@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet20", 10, 269722),
        ("resnet32", 10, 464154),
        ("resnet44", 10, 658586),
        ("resnet56", 10, 853018),
        ("resnet110", 10, 1727962),
        ("resnet8x4", 100, 1233540),
        ("resnet32x4", 100, 7433860),
        ("resnet18", 10, 11173962),
        ("resnet34", 10, 21282122),
        ("resnet50", 10, 23520842),
        ("wrn_40_2", 10, 2243546),
        ("wrn_40_1", 10, 563930),
        ("wrn_16_1", 10, 175066),
        ("wrn_16_2", 10, 691674),
        ("wrn", 10, 36479194),
        ("vgg8", 100, 3965028),
        ("vgg11", 100, 9277284),
        ("vgg13", 100, 9462180),
        ("mobilenetv2_half", 100, 812836),
        ("shufflenetv1", 100, 949258),
        ("shufflenetv2", 100, 1355528),
    ],
)
def test_parameter_counts(name: str, classes: int, count: int) -> None:
    assert parameters(build(name, num_classes=classes)) == count


def test_counts_of_other_widths() -> None:
    """torchvision's MobileNetV2 lacks the first block's 1×1 up, 32·32 weights and a BatchNorm."""
    torchvisions = torchvision.models.mobilenet_v2(num_classes=10)
    assert parameters(MobileNetV2(3, 10)) == parameters(torchvisions) + 32 * 32 + 2 * 32
    theirs = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    stems = 24 * 3 * 9 - 24 * 3  # 3×3 where ours is 1×1
    assert parameters(shufflenet_v2(3, 10, 0.5)) == parameters(theirs) - stems


def test_lenet_counts() -> None:
    assert parameters(build("lenet5", in_channels=1)) == 61706  # LeCun's layout at 32x32
    half = (25 + 1) * 3 + (3 * 25 + 1) * 8 + (8 * 25 + 1) * 60 + (60 + 1) * 42 + (42 + 1) * 10
    assert parameters(build("lenet5_half", in_channels=1)) == half
    for name, layers in (("lenet5_bn", 3), ("lenet5_half_bn", 3), ("lenet5", 0)):
        assert len(classifier(build(name)).batchnorms()) == layers


def test_digits_pair_sizes() -> None:
    assert 100_000 < parameters(build("digits_cnn", in_channels=1)) < 200_000
    assert 30_000 < parameters(build("digits_cnn_small", in_channels=1)) < 50_000


def test_lenet_is_the_plain_sequence() -> None:
    module = LeNet5(1, 10)
    (c1, c2, c3) = (m for m in module.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, 1, 32, 32)
    y = F.max_pool2d(c1(x).relu(), 2)
    y = F.max_pool2d(c2(y).relu(), 2)
    y = c3(y).relu().view(2, 120)
    torch.testing.assert_close(module(x), module.fc2(module.fc1(y).relu()))


def test_lenet_taps_equal_the_sequence() -> None:
    module = LeNet5(3, 10)
    x = torch.rand(2, 3, 32, 32)
    network = classifier(module, ("stage1", "stage3", "pooled"))
    features = network(x).features
    stage1 = module.stage1(network.spec.normalize(x))
    stage3 = module.stage3(module.stage2(stage1))
    assert torch.equal(features["stage1"], stage1)
    assert torch.equal(features["stage3"], stage3)
    assert torch.equal(features["pooled"], stage3.flatten(1))


def test_wrn_blocks_are_preactivated() -> None:
    first, second = WideResNet(3, 10, 16, 2).eval().block1.layer
    x = torch.randn(2, 16, 8, 8)
    a = first.bn1(x).relu()
    expected = first.conv2(first.bn2(first.conv1(a)).relu()) + first.convShortcut(a)
    torch.testing.assert_close(first(x), expected)
    y = torch.randn(2, 32, 8, 8)
    expected = y + second.conv2(second.bn2(second.conv1(second.bn1(y).relu())).relu())
    torch.testing.assert_close(second(y), expected)


def test_inverted_residuals_end_linear_and_add_what_they_can() -> None:
    x = torch.randn(2, 8, 6, 6)
    same, wider, halved = (
        InvertedResidual(8, out, stride, 3).eval() for out, stride in ((8, 1), (12, 1), (8, 2))
    )
    torch.testing.assert_close(same(x), x + same.layers(x))
    assert torch.equal(wider(x), wider.layers(x))
    assert halved(x).shape == (2, 8, 3, 3)
    assert (wider(x) < 0).any()
    assert [m.groups for m in wider.layers if isinstance(m, nn.Conv2d)] == [1, 24, 1]


def test_channels_are_shuffled_across_groups() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffled(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffled(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(shuffled(shuffled(x, 2), 3), x)


def test_shuffle_units_pass_on_what_they_do_not_convolve() -> None:
    x = torch.randn(2, 24, 6, 6).relu()
    y = SplitUnit(24).eval()(x)
    assert torch.equal(y[:, ::2], x[:, :12])
    joined = GroupUnit(24, 60, stride=2).eval()(x)
    assert torch.equal(joined[:, 36:], F.avg_pool2d(x, 3, 2, 1))
    unit = GroupUnit(60, 60).eval()
    x = torch.randn(2, 60, 3, 3)
    made = unit.leave(shuffled(unit.enter(x), 3))
    torch.testing.assert_close(unit(x), (x + made).relu())
    assert [m.groups for m in unit.modules() if isinstance(m, nn.Conv2d)] == [3, 15, 3]


def test_zero_pad_shortcut() -> None:
    x = torch.randn(2, 16, 7, 7)
    y = ZeroPadShortcut(2, 16)(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_shortcut_options() -> None:
    option_b = resnet_cifar(3, 10, 20, shortcut="B")
    assert parameters(option_b) == 272474
    assert "layer2.0.shortcut.0.weight" in option_b.state_dict()
    with pytest.raises(ValueError, match=r"'A'.*'B'.*'C'"):
        resnet_cifar(3, 10, 20, shortcut="C")


def test_initialization() -> None:
    module = resnet(3, 10, 18)
    weight = module.layer4[0].conv1.weight  # 256 to 512 channels
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert not module.linear.bias.any()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LeNet5(1, 10, input_size=(28, 28)), "28x28.*data.size=32"),
        (lambda: resnet_cifar(3, 10, 18), r"6n \+ 2.*18"),
        (lambda: resnet_cifar(3, 10, 2), r"6n \+ 2.*not 2"),
        (lambda: WideResNet(3, 10, 20, 2), r"6n \+ 4.*20"),
        (lambda: WideResNet(3, 10, 4, 2), r"6n \+ 4.*not 4"),
        (lambda: resnet(3, 10, 101), "18, 34 or 50"),
        (lambda: VGG(3, 10, 16), "8, 11 or 13"),
        (lambda: MobileNetV2(3, 10, width=0.05), "at least 1/16.*0.05"),
        (lambda: MobileNetV2(3, 10, expansion=0), "at least 1, not 1.0 and 0"),
        (lambda: shufflenet_v2(3, 10, size=3), "0.5 or 1, not 3"),
    ],
)
def test_impossible_networks(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("name", NAMES)
def test_file_begins_with_its_paper(name: str) -> None:
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", LIGHT)
def test_signal_survives_initialisation(name: str) -> None:
    torch.manual_seed(0)
    module = build(name)
    with torch.no_grad():
        logits = module(torch.randn(16, 3, size(name), size(name)))
    assert 0.01 < logits.std().item() < 30
