"""The discriminator and the student pull at one loss from opposite sides."""

import pytest
import torch
from torch import Tensor

from core.runtime import Runtime
from data.spec import Batch
from distillers.adversarial import Discriminator, reversed_gradient
from distillers.distiller import Distiller
from distillers.pool import RandomTeacher
from distillers.response import KD, LogitL1
from distillers.step import Edge, Ref, Roles, Step
from models.classifier import Classifier, Outputs
from models.meter import Meter
from tests.distillers.small import SPEC, Network, make_batch, objective_of

BATCH = Batch(torch.zeros(16, 1))


def pair() -> tuple[Tensor, Tensor]:
    """Logits of a student and a teacher that can be told apart, but not by all."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 16, 8, generator=generator)
    return student.requires_grad_(), (2 * teacher + 0.5).requires_grad_()


def make_loss(factor: float = 1.0) -> Discriminator:
    torch.manual_seed(1)
    return Discriminator(8, factor)


def plain(loss: Discriminator, student: Tensor, teacher: Tensor) -> Tensor:
    """−½·(mean log D(t) + mean log(1 − D(s))), D a probability."""
    ours, theirs = (torch.sigmoid(loss.layers(x))[:, 0] for x in (student, teacher))
    return -(theirs.log().mean() + (1 - ours).log().mean()) / 2


def test_a_reversed_gradient() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    y = reversed_gradient(x, 0.3)
    assert torch.equal(y, x)
    (found,) = torch.autograd.grad(y.sin().sum(), x)
    torch.testing.assert_close(found, -0.3 * x.cos())


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_the_sign_of_each_gradient(factor: float) -> None:
    loss, (student, teacher) = make_loss(factor), pair()
    value = loss(Outputs(student), Outputs(teacher), BATCH)
    expected = plain(loss, student, teacher)
    torch.testing.assert_close(value, expected)
    parameters = list(loss.parameters())
    found = torch.autograd.grad(value, [student, *parameters])
    wanted = torch.autograd.grad(expected, [student, *parameters])
    torch.testing.assert_close(found[0], -factor * wanted[0])
    assert wanted[0].abs().sum() > 1e-4
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours, theirs)
    value = loss(Outputs(student), Outputs(teacher), BATCH)
    value.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("who", ["discriminator", "student"])
def test_each_side_alone_gets_its_way(who: str) -> None:
    loss, (student, teacher) = make_loss(), pair()
    learning = {"discriminator": list(loss.parameters()), "student": [student]}
    start = plain(loss, student, teacher).item()
    steps(loss, student, teacher, learning["discriminator"])  # or there is nothing to deceive
    before = plain(loss, student, teacher).item()
    assert before < start - 0.05
    steps(loss, student, teacher, learning[who])
    after = plain(loss, student, teacher).item()
    assert after < before - 0.05 if who == "discriminator" else after > before + 0.05


def steps(loss: Discriminator, student: Tensor, teacher: Tensor, learning: list[Tensor]) -> None:
    optimizer = torch.optim.Adam(learning, lr=0.05)
    for _ in range(20):
        value = loss(Outputs(student), Outputs(teacher), BATCH)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def test_a_discriminator_can_be_sure_of_either() -> None:
    """Which a ReLU after its last layer would not allow."""
    loss, (student, teacher) = make_loss(), pair()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss(Outputs(student), Outputs(teacher), BATCH).backward()
        optimizer.step()
    assert torch.sigmoid(loss.layers(student)).mean() < 0.2
    assert torch.sigmoid(loss.layers(teacher)).mean() > 0.8


def test_any_number_of_classes() -> None:
    for classes in (2, 3, 100):
        x = torch.randn(4, classes)
        loss = Discriminator(classes)
        torch.testing.assert_close(loss(Outputs(x), Outputs(x), BATCH), plain(loss, x, x))
    with pytest.raises(ValueError, match="factor must be at least 0"):
        Discriminator(4, -1.0)


def pool_of(count: int) -> tuple[Roles, list[Meter]]:
    meters = [Meter() for _ in range(count)]
    frozen = {}
    for i, meter in enumerate(meters):
        torch.manual_seed(i)
        frozen[f"t{i}"] = Classifier(Network(4), SPEC).metered(meter)
    return Roles({}, frozen, {"pool": RandomTeacher(list(frozen))}, {}, Runtime("cpu")), meters


def test_a_step_asks_one_of_a_pool_and_once() -> None:
    roles, meters = pool_of(3)
    counts = [0, 0, 0]
    for number in range(120):
        step = Step(roles, make_batch(), number)
        first = step.target(Ref("pool")).logits
        assert step.target(Ref("pool")).logits is first
        asked = [meter.queries for meter in meters]
        assert sum(asked) == 6 * (number + 1)
        drawn = next(i for i in range(3) if asked[i] > 6 * counts[i])
        counts[drawn] += 1
        assert torch.equal(first, roles.frozen[f"t{drawn}"](make_batch().input).logits)
        meters[drawn].queries -= 6  # of the line above
        again = Step(roles, make_batch(), number)  # as after a resume
        assert torch.equal(again.target(Ref("pool")).logits, first)
        meters[drawn].queries -= 6
    assert min(counts) > 20


def test_a_pool_needs_a_teacher() -> None:
    with pytest.raises(ValueError, match="at least one teacher"):
        RandomTeacher([])


def test_two_losses_learn_from_the_same_draw() -> None:
    roles, meters = pool_of(3)
    torch.manual_seed(9)
    edges = {name: Edge(teacher=Ref("pool")) for name in ("kd", "l1")}
    distiller = Distiller(
        Classifier(Network(4), SPEC),
        objective_of(kd=KD(), l1=LogitL1()),
        None,
        Runtime("cpu"),
        edges=edges,
        teachers={**roles.frozen, **roles.teachers},
    )
    for step in range(1, 6):
        distiller(make_batch()).total.backward()
        assert sum(meter.queries for meter in meters) == 6 * step
