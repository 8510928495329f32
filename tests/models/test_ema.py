"""The average follows its closed form, survives a round trip, and is safe to evaluate."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from data.spec import InputSpec
from models.classifier import Classifier
from models.ema import EMA


def make_student(taps: tuple[str, ...] = ()) -> Classifier:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    return Classifier(module, InputSpec((1, 8, 8)), taps=taps)


def images(n: int = 8) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_closed_form() -> None:
    torch.manual_seed(0)
    student = make_student().double()
    start = [p.detach().clone() for p in student.parameters()]
    ema = EMA(student, decay=0.9)
    with torch.no_grad():
        for p in student.parameters():
            p.copy_(torch.randn_like(p))
    for _ in range(7):
        ema.update()
    for first, p, average in zip(start, student.parameters(), ema.module.parameters(), strict=True):
        kept = math.prod((1 + n) / (10 + n) for n in range(7))
        torch.testing.assert_close(average, p + kept * (first - p), rtol=1e-12, atol=1e-12)


def test_the_decay_rises_to_the_one_given() -> None:
    """With 0.5 from update 8 on, (1 + 8) / (10 + 8): one step away from a constant halves."""
    linear = nn.Linear(1, 1, bias=False).double()
    ema = EMA(linear, decay=0.5)

    def distance() -> float:
        return (ema.module.weight - linear.weight).item()

    distances = []
    for _ in range(12):
        distances.append(distance())
        with torch.no_grad():
            linear.weight.add_(1.0)
        ema.update()
    distances.append(distance())
    decays = [b / (a - 1.0) for a, b in itertools.pairwise(distances)]
    expected = [(1 + n) / (10 + n) for n in range(8)] + [0.5] * 4
    assert decays == pytest.approx(expected, rel=1e-12)


def test_buffers_are_copied() -> None:
    student = make_student()
    ema = EMA(student, decay=0.99)
    for _ in range(3):
        student(images())
    ema.update()
    for (name, mine), theirs in zip(ema.module.named_buffers(), student.buffers(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.data_ptr() != theirs.data_ptr(), name
    assert int(ema.module.batchnorms()[0].num_batches_tracked) == 3  # type: ignore[arg-type]


def test_buffers_are_copied_in_lists_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of others, CUDA copies each tensor by itself."""
    copied: list[tuple[int, set[torch.dtype]]] = []
    copy = torch._foreach_copy_

    def recorded(kept: list[Tensor], now: list[Tensor]) -> None:
        copied.append((len(kept), {tensor.dtype for tensor in [*kept, *now]}))
        copy(kept, now)

    monkeypatch.setattr(torch, "_foreach_copy_", recorded)
    EMA(nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(5))), decay=0.9).update()
    assert copied == [(10, {torch.float32}), (5, {torch.int64})]


def test_a_plain_module_without_buffers() -> None:
    linear = nn.Linear(2, 2)
    ema = EMA(linear, decay=0.0)
    with torch.no_grad():
        linear.weight.fill_(3.0)
    ema.update()
    assert torch.equal(ema.module.weight, linear.weight)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_copy_is_frozen_in_eval_mode_and_apart(compiled: bool) -> None:
    student = make_student(taps=("0",)).train()
    if compiled:
        student.module.compile(backend="eager")
    student(images())
    ema = EMA(student, decay=0.5)
    assert not any(m.training for m in ema.module.modules())
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert student.training
    assert all(p.requires_grad for p in student.parameters())
    before = ema.module(images()).logits
    with torch.no_grad():
        for p in student.parameters():
            p.zero_()
    assert torch.equal(ema.module(images()).logits, before)
    assert before.abs().sum() > 0
    assert not ema.module(images()).features


def test_state_round_trip() -> None:
    student = make_student()
    ema = EMA(student, decay=0.9)
    student(images())
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    ema.update()
    other = EMA(make_student(), decay=0.9)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.module(images()).logits, ema.module(images()).logits)
    for one in (ema, other):  # in the same place of the rise
        with torch.no_grad():
            for p in one.source.parameters():
                p.fill_(0.5)
        one.update()
    for mine, theirs in zip(ema.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_must_be_below_one(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        EMA(make_student(), decay)
