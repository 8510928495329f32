"""Spatial activation: both kinds of map against naive loops, and whose gradient goes where."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.spec import Batch, InputSpec
from distillers.activation import SpatialActivation, class_maps, grad_cam, importance
from distillers.base import side
from models.classifier import Classifier, Outputs
from models.digits import DigitsCNN
from models.lenet import LeNet5
from models.taps import named_taps

SPEC = InputSpec((1, 16, 16), (0.0, 1.0), (0.3,), (0.4,))
WIDE = InputSpec((1, 32, 32), (0.0, 1.0), (0.3,), (0.4,))


class Tokens(nn.Module):
    """Patches as tokens behind a class token, as in a ViT."""

    taps = {"stage1": "mix", "logits": "head"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 12, 4, 4)
        self.mix = nn.TransformerEncoderLayer(12, 2, 16, 0.0, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.mix(torch.cat([x.mean(1, keepdim=True), x], 1))[:, 0])


def network(kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    kinds: dict[str, Any] = {
        "cnn": lambda: DigitsCNN(1, 4, 5),
        "wide": lambda: DigitsCNN(1, 4, 8),
        "lenet": lambda: LeNet5(1, 4, batchnorm=True),
        "tokens": Tokens,
    }
    return kinds[kind]()


def made(student: str, teacher: str) -> tuple[SpatialActivation, Classifier, Classifier, Tensor]:
    """The loss, both networks with its taps, and inputs."""
    spec = WIDE if "lenet" in (student, teacher) else SPEC
    nets = network(student, 1), network(teacher, 2)
    loss = SpatialActivation()
    loss.resolve(*map(named_taps, nets))
    ours = Classifier(nets[0], spec, taps=loss.student_taps)
    theirs = Classifier(nets[1], spec).eval().requires_grad_(False).frozen(loss.teacher_taps)
    x = torch.rand(5, *spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs(x)
        dry = ours.eval()(x[:2])
        loss.prepare(side(ours, dry), side(theirs, theirs(x[:2])))
        ours.train()
    return loss, ours, theirs, x


def ask(net: Classifier, x: Tensor) -> Outputs:
    outputs: Outputs = net(x)
    return outputs


PAIRS = [("cnn", "wide"), ("lenet", "lenet"), ("tokens", "cnn"), ("cnn", "tokens")]


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_gradients_reach_the_student_alone_and_nothing_else_changes(
    student: str, teacher: str
) -> None:
    loss, ours, theirs, x = made(student, teacher)
    answers = ask(ours, x), ask(theirs, x)
    before = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
    value = loss(*answers, Batch(x))
    for net, state in zip((ours, theirs), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())
    assert ours.training
    value.backward()
    assert value.isfinite()
    assert any(p.grad is not None and p.grad.any() for p in ours.parameters())
    assert all(p.grad is None for p in theirs.parameters())
    assert not list(loss.parameters())


def test_it_is_0_between_a_network_and_itself_and_not_between_two() -> None:
    loss, _, _, x = made("cnn", "wide")
    net = Classifier(network("wide", 2), SPEC, taps=("stage1", "stage2")).requires_grad_(False)
    net.train()
    same = SpatialActivation(("stage1", "stage2"))
    answers = ask(net, x)
    same.prepare(side(net, answers), side(net, answers))
    # the teacher's view has running statistics: give it the batch's as well
    same.views = (same.views[0], same.views[0])
    assert same(answers, answers, Batch(x)).item() == pytest.approx(0.0, abs=1e-10)
    loss, ours, theirs, x = made("cnn", "wide")
    assert loss(ask(ours, x), ask(theirs, x), Batch(x)).item() > 1e-6


def test_the_students_gradient_is_that_of_its_own_pass_in_training_mode() -> None:
    loss, ours, _, x = made("cnn", "wide")
    label = torch.tensor([0, 1, 2, 3, 0])
    outputs = ask(ours, x)
    chosen = torch.stack([outputs.logits[i, c] for i, c in enumerate(label)]).sum()
    found = importance(loss.views[0], x, label)
    for tap in loss.student_taps:
        (gradient,) = torch.autograd.grad(chosen, outputs.features[tap], retain_graph=True)
        torch.testing.assert_close(found[tap], gradient.mean((2, 3)))


def test_importance_follows_the_logit() -> None:
    """The gradient of a linear head behind average pooling is its weight over the places."""
    loss, ours, _, x = made("cnn", "wide")
    label = torch.tensor([3, 1, 2, 3, 0])
    alpha = importance(loss.views[0], x, label)["stage2"]
    weight = ours.module.linear.weight
    expected = torch.stack([weight[c] for c in label]) / (4 * 4)
    torch.testing.assert_close(alpha, expected.detach())


def test_maps_are_those_of_a_naive_loop() -> None:
    noise = torch.Generator().manual_seed(0)
    feature, alpha = torch.randn(2, 3, 4, 5, generator=noise), torch.randn(2, 3, generator=noise)
    head = nn.Linear(3, 6)
    cam, every = grad_cam(feature, alpha), class_maps(feature, head)
    assert every.shape == (2, 6, 4, 5)
    for i in range(2):
        for row in range(4):
            for column in range(5):
                at = feature[i, :, row, column]
                one = sum(a * f for a, f in zip(alpha[i], at, strict=True))
                torch.testing.assert_close(cam[i, 0, row, column], one)
                torch.testing.assert_close(
                    every[i, :, row, column], head(at).detach() - head.bias.detach()
                )
    assert not every.requires_grad, "the head takes no gradient"


def test_the_value_put_together_by_hand() -> None:
    loss, ours, theirs, x = made("cnn", "wide")
    s, t = ask(ours, x), ask(theirs, x)
    label = t.logits.argmax(1)
    a, b = (importance(view, x, label) for view in loss.views)
    total = torch.zeros(())
    for tap in ("stage1", "stage2"):
        one = torch.einsum("bchw,bc->bhw", s.features[tap], a[tap])
        two = torch.einsum("bchw,bc->bhw", t.features[tap], b[tap])
        total = total + (one - two).square().mean()
    both = zip((s, t), (ours, theirs), strict=True)
    one, two = (
        torch.einsum("bchw,kc->bkhw", o.features["stage2"], n.module.linear.weight) for o, n in both
    )
    total = total + (one - two).square().mean()
    torch.testing.assert_close(loss(s, t, Batch(x)), total)


def test_class_maps_are_left_out_where_a_head_reads_something_else() -> None:
    assert len(made("cnn", "wide")[0].heads) == 2
    assert made("lenet", "lenet")[0].heads == ()
