"""How losses name features, and how features of different shapes are brought together."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.adapters import Adapter
from distillers.base import STAGES, Side, Taps, TransferLoss
from distillers.distiller import Distiller
from distillers.edges import resolve_taps, student_taps
from models.classifier import Classifier, Outputs
from models.digits import DigitsCNN
from models.features import comparable, to_map, to_tokens, to_vector

TWO = {"stage1": "a", "stage2": "b", "pooled": "p"}
FOUR = {f"stage{i}": f"layer{i}" for i in (1, 2, 3, 4)} | {"logits": "fc"}


@pytest.mark.parametrize(
    ("taps", "student", "teacher"),
    [
        (STAGES, ("stage1", "stage2"), ("stage3", "stage4")),
        (("stage-1",), ("stage2",), ("stage4",)),
        (("stage-2", "pooled"), ("stage1", "pooled"), ("stage3", "pooled")),
        (({"student": "stage1", "teacher": "layer2.0"},), ("stage1",), ("layer2.0",)),
        (({"student": "x.y", "teacher": "stage-4"},), ("x.y",), ("stage1",)),
    ],
)
def test_wildcards(taps: Taps, student: tuple[str, ...], teacher: tuple[str, ...]) -> None:
    loss = TransferLoss(taps)
    loss.resolve(TWO, FOUR)
    assert (loss.student_taps, loss.teacher_taps) == (student, teacher)


def test_explicit_taps_need_no_resolving() -> None:
    loss = TransferLoss(["a", {"student": "b", "teacher": "c"}])
    assert loss.student_taps == ("a", "b")
    assert loss.teacher_taps == ("a", "c")


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (("stage-3",), "no tap 'stage-3': the student's stages are stage1, stage2"),
        ([{"student": "stage1", "teacher": "stage-0"}], "the teacher's stages are .*, stage4"),
        ([{"student": "stage1"}], "{student: name, teacher: name}"),
    ],
)
def test_mistakes(taps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransferLoss(taps).resolve(TWO, FOUR)
    with pytest.raises(ValueError, match="the teacher names no stages"):
        TransferLoss(STAGES).resolve(TWO, {"logits": "fc"})


MAP, LARGE, TOKENS = (2, 6, 4, 4), (2, 3, 8, 8), (2, 17, 5)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (MAP, MAP, MAP),
        (MAP, LARGE, (2, 3, 4, 4)),
        (LARGE, MAP, (2, 6, 4, 4)),
        ((2, 3, 8, 2), (2, 4, 4, 4), (2, 4, 4, 2)),
        (MAP, TOKENS, (2, 5, 4, 4)),
        (TOKENS, LARGE, (2, 3, 4, 4)),
        (TOKENS, (2, 17, 7), (2, 17, 7)),
        (TOKENS, (2, 64, 7), (2, 7, 4, 4)),
        ((2, 5), (2, 9), (2, 9)),
        (MAP, (2, 9), (2, 9)),
        ((2, 9), TOKENS, (2, 5)),
    ],
)
def test_any_two_features_are_brought_together(
    student: tuple[int, ...], teacher: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    s, t = torch.randn(student), torch.randn(teacher)
    adapter = Adapter(s, t)
    a, b = adapter(s, t)
    assert a.shape == b.shape == expected
    assert list(adapter.parameters()) or student == teacher
    assert str(teacher[1]) in adapter.describe()


def test_alike_features_pass_unless_a_projection_is_wanted() -> None:
    s, t = torch.randn(MAP), torch.randn(MAP)
    a, b = Adapter(s, t)(s, t)
    assert torch.equal(a, s)
    assert torch.equal(b, t)
    assert list(Adapter(s, t, always=True).parameters())


def test_conversions_keep_the_order_of_places() -> None:
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(to_map(to_tokens(x)), x)
    with_class = torch.cat([torch.zeros(2, 1, 5), to_tokens(x)], dim=1)
    assert torch.equal(to_map(with_class), x)
    torch.testing.assert_close(to_vector(x), x.mean(dim=(2, 3)))
    a, b = comparable(x, torch.randn(2, 7, 6, 6))
    assert a.shape[2:] == b.shape[2:] == (3, 3)
    for odd in (torch.randn(2, 15, 4), torch.randn(2, 4)):
        with pytest.raises(ValueError, match="choose another"):
            to_map(odd)


@pytest.mark.parametrize("tap", ["stage9", "stage-last", "layer1.0"])
def test_a_tap_that_does_not_exist_lists_those_that_do(tap: str) -> None:
    teacher, student = DigitsCNN(1, 10, width=6), DigitsCNN(1, 10, width=4)
    objective = Objective({"hint": Weighted(Projected([tap]))})
    resolve_taps(objective, student, Classifier(teacher, SPEC))
    known = f"no tap '{tap}' in DigitsCNN; it has: stage1, stage2, pooled, logits, .*stage2.0"
    with pytest.raises(ValueError, match=known):
        Classifier(student, SPEC, taps=student_taps(objective))
    with pytest.raises(ValueError, match=known):
        Classifier(teacher, SPEC).frozen(taps=[tap])


class Projected(TransferLoss):
    """Student's features to the teacher's; what FitNets is, and all that a test needs."""

    def __init__(self, taps: Taps = STAGES) -> None:
        super().__init__(taps)
        self.adapters = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side | None) -> None:
        assert teacher is not None
        assert student.head is not None
        assert student.head.in_features == 8
        pairs = self.pairs(student.outputs, teacher.outputs)
        self.adapters = nn.ModuleList(Adapter(s, t) for s, t in pairs)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        both = zip(self.adapters, self.pairs(student, teacher), strict=True)
        return torch.stack([F.mse_loss(*adapter(*pair)) for adapter, pair in both]).sum()


SPEC = InputSpec((1, 8, 8))


def make(seed: int = 0) -> Distiller:
    torch.manual_seed(seed)
    teacher = Classifier(DigitsCNN(1, 10, width=6), SPEC)
    objective = Objective({"hint": Weighted(Projected())})
    network = DigitsCNN(1, 10, width=4)
    resolve_taps(objective, network, teacher)
    student = Classifier(network, SPEC, taps=student_taps(objective))
    return Distiller(student, objective, teacher, Runtime(device="cpu"))


def test_a_dry_pass_gives_losses_their_shapes_and_changes_nothing() -> None:
    torch.manual_seed(0)
    Classifier(DigitsCNN(1, 10, width=6), SPEC)
    fresh = DigitsCNN(1, 10, width=4)
    distiller = make()
    assert distiller.student.training
    for (name, a), b in zip(
        distiller.student.module.state_dict().items(), fresh.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert distiller.adaptations == [
        "hint: student 4x4x4 to teacher 6x4x4 by "
        "Conv2d(4, 6, kernel_size=(1, 1), stride=(1, 1), bias=False)",
        "hint: student 8x2x2 to teacher 12x2x2 by "
        "Conv2d(8, 12, kernel_size=(1, 1), stride=(1, 1), bias=False)",
    ]


def test_what_was_prepared_is_trained_and_kept_but_not_with_the_student() -> None:
    distiller = make()
    x = torch.rand(4, 1, 8, 8)
    distiller(Batch(x)).total.backward()
    own = list(distiller.objective.parameters())
    assert len(own) == 2
    assert all(p.grad is not None and p.grad.any() for p in own)
    assert not set(map(id, own)) & set(map(id, distiller.student.parameters()))
    other = make(seed=1)
    other.load_state_dict(distiller.state_dict())
    for a, b in zip(own, other.objective.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("labels", ["source", "teacher"])
def test_labels_are_the_sources_or_the_teachers(labels: Any) -> None:
    seen = []

    class Reads(TransferLoss):
        needs_label = True

        def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
            seen.append((batch.label, teacher.logits.argmax(1)))  # type: ignore[union-attr]
            return student.logits.sum()

    teacher = Classifier(DigitsCNN(1, 10, width=6), SPEC)
    student = Classifier(DigitsCNN(1, 10, width=4), SPEC)
    objective = Objective({"reads": Weighted(Reads())})
    distiller = Distiller(student, objective, teacher, Runtime(device="cpu"), labels)
    x, label = torch.rand(4, 1, 8, 8), torch.tensor([11, 12, 13, 14])
    distiller(Batch(x, label))
    given, predicted = seen[0]
    assert torch.equal(given, label if labels == "source" else predicted)
