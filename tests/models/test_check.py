"""Networks that people have: what they return, what they are made of, and what is said of them."""

from __future__ import annotations

import threading
import types
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from data.spec import InputSpec
from models.check import check_network, materialize
from models.classifier import Classifier
from models.external import torchvision_model

SPEC = InputSpec((3, 8, 8), mean=(0.4,) * 3, std=(0.2,) * 3)
Answer = Callable[["Net", Tensor, Tensor], Any]
Named = namedtuple("Named", ["logits", "aux_logits"])


class Net(nn.Module):
    """Returns what ``answer`` makes of its features [B, 16] and its logits [B, 5]."""

    def __init__(self, answer: Answer = lambda net, x, y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.drop, self.head, self.extra = nn.Dropout(0.5), nn.Linear(16, 5), nn.Linear(16, 5)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.answer(self, x, self.head(self.drop(x)))


class Output(OrderedDict[str, Tensor]):
    """As ``transformers`` returns: keys that are attributes too, and tuples inside."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


WORK: dict[str, Answer] = {
    "tensor": lambda net, x, y: y,
    "logits, features": lambda net, x, y: (y, [x]),
    "features, logits": lambda net, x, y: [x, y],
    "dict": lambda net, x, y: {"logits": y, "aux": y + 1},
    "dict, as segmentation has it": lambda net, x, y: {"out": y, "aux": y + 1},
    "dict with one": lambda net, x, y: {"scores": y, "embedding": x},
    "namedtuple": lambda net, x, y: Named(y, y + 1),
    "an object": lambda net, x, y: types.SimpleNamespace(features=x, logits=y),
    "ModelOutput": lambda net, x, y: Output(loss=y.sum(), hidden_states=(x, x), logits=y),
    "in training": lambda net, x, y: (y, net.extra(x)) if net.training else y,
    "in training, named": lambda net, x, y: Named(y, net.extra(x)) if net.training else y,
    "in place": lambda net, x, y: (x.zero_(), y)[1],
    "always half": lambda net, x, y: y.half(),
}


@pytest.mark.parametrize("kind", WORK)
def test_logits_are_found(kind: str) -> None:
    net = Net(WORK[kind])
    classifier = Classifier(net, SPEC, list("abcde"))
    line = check_network(classifier, 5, training=True)
    assert bool(line) == (kind not in ("tensor", "in place", "always half")), line
    x = torch.rand(4, 3, 8, 8)
    expected = Classifier(Net().eval(), SPEC)(x).logits
    torch.testing.assert_close(classifier.eval()(x).logits, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(classifier.frozen()(x).logits, classifier(x).logits)
    assert classifier.train()(x).logits.shape == (4, 5)


REFUSED: dict[str, tuple[Answer, str]] = {
    "two": (lambda net, x, y: (y, net.extra(x)), r"Net returns a tuple of \(1x5, 1x5\); more than"),
    "two by name": (lambda net, x, y: {"a": y, "b": y}, "more than one of these could be"),
    "none": (lambda net, x, y: (x, [y]), r"Net returns a tuple of \(1x16, list\), in which no"),
    "an object": (lambda net, x, y: object(), "returns an object of type object, in which no"),
    "nothing": (lambda net, x, y: None, "object of type NoneType"),
    "its second in training": (
        lambda net, x, y: (net.extra(x), y) if net.training else y,
        "and the first is not what it returns in eval mode",
    ),
    "its mean in eval mode": (
        lambda net, x, y: (y, net.extra(x)) if net.training else (y + net.extra(x)) / 2,
        "return the logits first, or under the name logits",
    ),
    "another width in training": (
        lambda net, x, y: x if net.training else y,
        r"logits of shape 2x16 in training for an input of shape 3x8x8, but the data has 5",
    ),
    "three dimensions": (lambda net, x, y: y[:, None], "logits of shape 1x1x5"),
    "integers": (lambda net, x, y: y.long(), "gives torch.int64, but logits are"),
    "not a number": (lambda net, x, y: y / 0 * 0, "logits that are not finite"),
    "float64": (lambda net, x, y: net.head.double()(x.double()) @ x, "Net cannot take inputs"),
    "fails in training": (lambda net, x, y: y if not net.training else y[7], "5 classes in train"),
    "a key": (lambda net, x, y: {}["x"], r"Net cannot take inputs .*\(KeyError: 'x'\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_one_line_says_why_not(kind: str) -> None:
    answer, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        check_network(Classifier(Net(answer), SPEC, list("abcde")), 5, training=True)
    assert "\n" not in str(caught.value)
    assert "Net " in str(caught.value)


def test_more_inputs_than_one_and_what_cannot_be_copied() -> None:
    net = Net()
    net.forward = lambda x, mask: net.head(x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="missing 1 required positional argument: 'mask'"):
        check_network(Classifier(net, SPEC), 5)
    locked = Net()
    locked.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"Net cannot be copied .*lock.*keep files, locks"):
        check_network(Classifier(locked, SPEC), 5)


class Extra(Net):
    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": 3}


class LazyAuxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.aux = nn.LazyLinear(5), nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(x) + self.aux(x) if self.training else self.head(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_what_cannot_be_read_or_kept() -> None:
    script = torch.jit.trace(nn.Flatten(), torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="is TorchScript, whose layers cannot be read"):
        check_network(Classifier(nn.Sequential(script), SPEC), 192)
    with pytest.raises(ValueError, match=r"Extra has a dict in its state \(_extra_state\)"):
        check_network(Classifier(Extra(), SPEC), 5)
    with pytest.raises(ValueError, match=r"lazy layers that eval mode does not run \(aux.weight"):
        materialize(LazyAuxiliary(), (3, 8, 8), 5)


def test_a_check_in_train_mode_leaves_no_trace() -> None:
    classifier = Classifier(Net(), SPEC).train()
    classifier.module.conv.eval()
    modes = [m.training for m in classifier.modules()]
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    random = torch.get_rng_state()
    check_network(classifier, 5, training=True)
    assert [m.training for m in classifier.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks for m in classifier.modules())


def test_no_device_memory_is_not_the_networks_fault() -> None:
    def full(net: Net, x: Tensor, y: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        check_network(Classifier(Net(full), SPEC), 5)


def test_lazy_modules_find_their_sizes() -> None:
    lazy = [nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5)]
    module = materialize(nn.Sequential(*lazy), (3, 8, 8), 5)
    assert module.training
    assert int(module[1].num_batches_tracked) == 0
    check_network(Classifier(module, SPEC), 5, training=True)
    with pytest.raises(ValueError, match="Sequential cannot take inputs of shape 3x2x2"):
        materialize(nn.Sequential(nn.LazyConv2d(4, 3)), (3, 2, 2), 5)


def spectral(layer: nn.Module) -> nn.Module:
    return torch.nn.utils.spectral_norm(layer)


def masked(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", 0.5)


NORMED = [spectral, masked, parametrizations.spectral_norm, parametrizations.weight_norm]


@pytest.mark.parametrize("normed", [*NORMED, torch.nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_computed_follow_the_original(normed: Callable[..., Any]) -> None:
    net = Net()
    net.head = normed(net.head)
    classifier, x = Classifier(net, SPEC), torch.rand(4, 3, 8, 8)
    classifier.train()(x).logits.sum().backward()  # leaves a weight with a history
    view = classifier.frozen()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(view(x).logits, classifier.eval()(x).logits)
    assert not any(p.requires_grad for p in view.parameters())
    check_network(classifier, 5, training=True)


def test_tied_weights_and_kept_features_and_no_running_statistics() -> None:
    def keep(net: Net, x: Tensor, y: Tensor) -> Tensor:
        net.kept = {"features": [x]}  # type: ignore[assignment]
        return F.linear(x, net.extra.weight)

    net = Net(keep)
    net.extra.weight, net.norm = net.head.weight, nn.BatchNorm2d(16, track_running_stats=False)
    classifier, x = Classifier(net, SPEC), torch.rand(4, 3, 8, 8)
    classifier(x)
    view = classifier.frozen(statistics=True)
    assert view.module.extra.weight is view.module.head.weight  # type: ignore[union-attr]
    torch.testing.assert_close(view(x).logits, classifier.eval()(x).logits)
    assert view(x).statistics == []


@pytest.mark.parametrize(
    "name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)]
)
def test_torchvisions_auxiliary_logits(name: str) -> None:
    size = 32 if name == "googlenet" else 75
    spec = InputSpec((3, size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
    module = torchvision_model(name, 3, 7, aux_logits=True, init_weights=False)
    if name == "inception_v3":  # whose auxiliary head needs 299 pixels
        with pytest.raises(ValueError, match=r"Inception3 cannot take .* in training"):
            check_network(Classifier(module, spec), 7, training=True)
        check_network(Classifier(module, spec), 7)
    else:
        line = check_network(Classifier(module, spec), 7, training=True)
        assert line.startswith("GoogLeNet returns a GoogLeNetOutputs of (2x7, 2x7, 2x7) in train")
    view = Classifier(module, spec).frozen(statistics=True)
    assert view.idle
    assert all("aux" in layer.lower() for layer in view.idle)
    assert len(view(spec.noise(1, torch.device("cpu"))).statistics) == len(view.measured or ())
