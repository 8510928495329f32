"""The average follows its closed form, survives a round trip, and is safe to evaluate."""

import pytest
import torch
from torch import Tensor, nn

from data.spec import InputSpec
from engine.ema import EMA
from models.classifier import Classifier


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
        torch.testing.assert_close(average, p + 0.9**7 * (first - p), rtol=1e-12, atol=1e-12)


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
    assert ema.state_dict().keys() == student.state_dict().keys()


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_must_be_below_one(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        EMA(make_student(), decay)
