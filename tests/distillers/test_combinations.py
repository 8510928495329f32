"""Combined answers give the losses that their papers have, and ask no more than they say."""

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.runtime import Runtime
from data.spec import Batch
from distillers.combinations import Combination, Confidence, Entropy, Gate, Mean, mixture
from distillers.distiller import Distiller
from distillers.response import KD, soft_kl
from distillers.step import Edge, Ref, Roles, Step, Teacher
from engine.config import compose, plain
from models.classifier import Classifier, Outputs
from tests.distillers.small import SPEC, Network, make_batch, make_teacher, objective_of

LABEL = torch.tensor([0, 3, 1, 1, 2, 0])
NAMES = ("a", "b", "c")


def draw(scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits [6, 3, 4] of three members and [6, 4] of a student, in double precision."""
    generator = torch.Generator().manual_seed(2)
    t = scale * torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    return t, torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()


class Said(Teacher):
    """Answers the logits that it was made with, and notes that it was asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.asked = logits, 0

    def forward(self, step: Step, view: str) -> Outputs:
        self.asked += 1
        return Outputs(self.logits)


def make_step(t: Tensor, number: int = 0, runtime: Runtime | None = None) -> Step:
    members = {name: Said(t[:, k]) for k, name in enumerate(NAMES)}
    roles = Roles({}, {}, members, {}, runtime or Runtime("cpu"))
    return Step(roles, Batch(torch.zeros(6, 1), LABEL), number)


def gradient(value: Tensor, s: Tensor) -> Tensor:
    return torch.autograd.grad(value, s, retain_graph=True)[0]


def authors(kind: str, t: Tensor, s: Tensor, tau: float) -> Tensor:
    """Loss [] as CA-MKD's repository computes it, member by member, times its own normaliser."""
    each = torch.stack(
        [
            tau**2 * F.kl_div(F.log_softmax(s / tau, 1), F.softmax(x / tau, 1), reduction="none")
            for x in t.unbind(1)
        ]
    ).sum(2)  # [K, B]
    count = len(each)
    if kind == "mean":
        return each.mean(dim=1).mean()
    if kind == "entropy":
        p = F.softmax(t, dim=2)
        h = -(p * p.log()).sum(2).T
        weights = 1 - h / h.sum(0)
        return (weights * each).mean(1).sum() / count * count / (count - 1)
    wrong = torch.stack([F.cross_entropy(x, LABEL, reduction="none") for x in t.unbind(1)])
    weights = (1 - F.softmax(wrong, dim=0)) / (count - 1)
    return (weights * each).mean(1).sum() / count * count


PARTS: dict[str, type[Combination]] = {"mean": Mean, "entropy": Entropy, "confidence": Confidence}


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("kind", PARTS)
def test_kd_to_the_mixture_has_the_gradient_of_the_weighted_losses(kind: str, tau: float) -> None:
    t, s = draw()
    step = make_step(t)
    combined = PARTS[kind](NAMES, temperature=tau)(step, "input")
    found = KD(tau)(Outputs(s), combined, step.batch)
    expected = authors(kind, t, s, tau)
    torch.testing.assert_close(gradient(found, s), gradient(expected, s))
    assert not torch.allclose(found, expected)  # they differ by entropies: the test is not vacuous
    others = [authors(other, t, s, tau) for other in PARTS if other != kind]
    assert not any(torch.allclose(gradient(found, s), gradient(o, s)) for o in others)


def test_the_target_is_the_mixture_of_probabilities() -> None:
    t, _ = draw()
    weights = torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64)
    found = F.softmax(mixture(t, weights, 4.0) / 4, dim=1)
    expected = 0.2 * F.softmax(t[:, 0] / 4, dim=1) + 0.8 * F.softmax(t[:, 2] / 4, dim=1)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, F.softmax((0.2 * t[:, 0] + 0.8 * t[:, 2]) / 4, dim=1))


@pytest.mark.parametrize("kind", PARTS)
def test_weights_sum_to_one_and_certain_members_give_finite_answers(kind: str) -> None:
    t, _ = draw(scale=1e4)  # probabilities underflow, entropies are 0
    step = make_step(t.float())
    part = PARTS[kind](NAMES, temperature=1.0)
    weights = part.weights(t.float(), step.batch).expand(6, 3)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(6))
    combined = part(step, "input")
    assert combined.logits.isfinite().all()
    assert soft_kl(torch.zeros(6, 4), combined.logits, 1.0).isfinite()


def test_equal_entropies_of_zero_are_equal_weights() -> None:
    t = torch.tensor([[[1e4, 0.0], [0.0, 1e4], [1e4, 0.0]]])
    weights = Entropy(NAMES).weights(t, Batch(torch.zeros(1)))
    torch.testing.assert_close(weights, torch.full((1, 3), 1 / 3))


def test_who_is_surer_or_right_counts_more() -> None:
    t = torch.zeros(6, 3, 4)
    t[:, 1, 2] = 5.0  # b is sure of class 2, which is right for one input
    batch = Batch(torch.zeros(6, 1), LABEL)
    surer = Entropy(NAMES).weights(t, batch)
    assert (surer[:, 1] > surer[:, 0]).all()
    right = Confidence(NAMES).weights(t, batch)
    assert ((right[:, 1] > right[:, 0]) == (LABEL == 2)).all()


def test_no_gradient_passes_through_the_weights() -> None:
    t, _ = draw()
    t.requires_grad_()
    answer = Entropy(NAMES, temperature=1.0)(make_step(t), "input").logits
    weights = Entropy(NAMES).weights(t.detach(), Batch(torch.zeros(6)))
    expected = torch.autograd.grad(mixture(t, weights, 1.0)[:, 0].sum(), t)[0]
    torch.testing.assert_close(torch.autograd.grad(answer[:, 0].sum(), t)[0], expected)


@pytest.mark.parametrize(("drop", "stay"), [(0, 3), (1, 2), (2, 1), (3, 1), (7, 1)])
def test_what_is_dropped_is_not_asked_and_one_always_stays(drop: int, stay: int) -> None:
    t, s = draw()
    part, left_out = Mean(NAMES, 5.0, drop), []
    for number in range(60):
        step = make_step(t, number)
        found = KD(5.0)(Outputs(s), part(step, "input"), step.batch)
        asked = [k for k, name in enumerate(NAMES) if step.roles.teachers[name].asked]
        assert len(asked) == stay
        kls = [soft_kl(s, t[:, k], 5.0) for k in asked]
        expected = torch.stack(kls).sum()  # DGKD's, of which a weight of their number makes ours
        torch.testing.assert_close(stay * gradient(found, s), gradient(expected, s))
        left_out += sorted({0, 1, 2} - set(asked))
    counts = [left_out.count(k) for k in range(3)]
    assert all(abs(c - 20 * (3 - stay)) < 12 for c in counts), counts


def test_a_step_drops_the_same_after_a_resume_and_others_on_another_rank() -> None:
    t, _ = draw()
    elsewhere = copy.copy(Runtime("cpu"))
    elsewhere.rank = 1
    part = Mean(NAMES, drop=1)

    def drawn(runtime: Runtime) -> list[Sequence[str]]:
        return [part.members(make_step(t, n, runtime)) for n in range(20)]

    torch.manual_seed(5)
    assert drawn(Runtime("cpu")) == drawn(Runtime("cpu")) != drawn(elsewhere)


def test_mistakes_are_named() -> None:
    for kind in (Entropy, Confidence):
        with pytest.raises(ValueError, match="at least 2"):
            kind(["a"])
    with pytest.raises(ValueError, match="at least 1"):
        Mean([])
    with pytest.raises(ValueError, match="at least 1 of those"):
        Mean("teacher")
    with pytest.raises(ValueError, match="twice: a, b, a"):
        Mean(["a", "b", "a"])
    with pytest.raises(ValueError, match="drop"):
        Mean(NAMES, drop=-1)
    with pytest.raises(ValueError, match="temperature"):
        Mean(NAMES, temperature=0)
    with pytest.raises(ValueError, match="at least 2"):
        Gate(["a"], "a", "stage2")


def test_a_distiller_learns_from_a_combination_of_networks() -> None:
    torch.manual_seed(0)
    student = Classifier(Network(4), SPEC)
    second = make_teacher()
    nn.init.normal_(second.module.head[1].weight)  # type: ignore[index, arg-type]
    edges = {"kd": Edge(teacher=Ref("combined"))}
    distiller = Distiller(
        student,
        objective_of(kd=KD(4.0)),
        make_teacher(),
        Runtime("cpu"),
        edges=edges,
        teachers={"second": second, "combined": Confidence(["teacher", "second"], 4.0)},
    )
    assert distiller.needs_label
    batch = make_batch(LABEL)
    total = distiller(batch).total
    t = torch.stack([n.eval()(batch.input).logits for n in (make_teacher(), second)], dim=1)
    weights = Confidence(["teacher", "second"]).weights(t, batch)
    expected = soft_kl(student.train()(batch.input).logits, mixture(t, weights, 4.0), 4.0)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("method", ["aver", "ebkd", "camkd"])
def test_the_methods_with_three_teachers(method: str) -> None:
    config = plain(compose([f"method={method}", "distiller.losses.kd.loss.temperature=3.0"]))
    teachers = config["teachers"]
    assert [teachers[name]["seed"] for name in ("second", "third")] == [1, 2]
    assert teachers["second"]["model"] == config["teacher"]["model"]
    assert teachers["combined"]["of"] == ["teacher", "second", "third"]
    assert teachers["combined"]["temperature"] == 3.0  # the loss's, as it has to be
    assert config["distiller"]["losses"]["kd"]["teacher"] == "combined"


def test_an_assistant_is_added_on_the_command_line() -> None:
    model = "{_target_: models.digits.DigitsCNN, width: 24}"
    assistant = f"teachers.small={{model: {model}, checkpoint: RUN/student.safetensors}}"
    config = plain(compose(["method=dgkd", assistant, "teachers.guides.of=[teacher,small]"]))
    assert config["teachers"]["small"]["checkpoint"] == "RUN/student.safetensors"
    assert config["teachers"]["guides"]["of"] == ["teacher", "small"]
    assert config["teachers"]["guides"]["temperature"] == 5.0
