"""What the settings of synthesis in rounds do: views, warm-up, schedule, augmentation."""

import pytest
import torch
from torch import Tensor

from generators.losses import OneHot
from tests.generators.small import inversion, objective


def test_views_are_seen_but_not_kept() -> None:
    def dark(x: Tensor, noise: torch.Generator) -> Tensor:
        return 0.0 * x

    looked: list[Tensor] = []
    source = inversion(views=[dark], objective=objective(one_hot=OneHot()))
    source.synthesizer.observe.teacher.register_forward_pre_hook(
        lambda _, args: looked.append(args[0])
    )
    source.next()
    assert not any(x.any() for x in looked)
    assert source.streams["bank"].store.images[:8].any()


def test_the_best_images_of_a_round_are_kept() -> None:
    """Where the second half of the round goes uphill, the last images are not the best."""
    totals: list[float] = []
    source = inversion(
        objective=objective(one_hot=OneHot()),
        iterations=12,
        views=[],
        schedule=lambda p: 10.0 if p < 0.5 else -10.0,
    )

    observe = source.synthesizer.observe
    observe.objective.register_forward_hook(lambda _, a, losses: totals.append(losses.total.item()))
    source.next()
    images, label = (
        source.streams["bank"].store.images[:8] / 255,
        source.streams["bank"].store.labels[:8],
    )
    *seen, kept = [*totals, observe(images, label).total.item()]
    assert kept == pytest.approx(min(seen), abs=0.05)
    assert seen[-1] > min(seen) + 0.2


def test_warm_up_rounds_come_first_and_leave_the_student_out() -> None:
    source = inversion(warmup=2, student_steps=3, capacity=100)
    ran: list[int] = []
    source.synthesizer.observe.student.register_forward_hook(lambda *_: ran.append(source.updates))
    source.next()
    assert source.updates == 3
    assert len(source.streams["bank"].store) == 24
    assert set(ran) == {2}
    for _ in range(3):
        source.next()
    assert source.updates == 4


def test_augmentations_are_applied_in_order() -> None:
    def double(x: Tensor, noise: torch.Generator) -> Tensor:
        return 2 * x

    def shift(x: Tensor, noise: torch.Generator) -> Tensor:
        return x + torch.rand((), generator=noise) + 1

    plain = inversion().next()
    augmented = inversion(augment=[double, shift]).next()
    offset = (augmented.input - 2 * plain.input).flatten()
    assert 1 <= offset[0] <= 2
    torch.testing.assert_close(offset, offset[:1].expand_as(offset))


def test_schedule_ends_the_round_gently() -> None:
    factors: list[float] = []
    source = inversion(schedule=lambda progress: factors.append(progress) or 0.0, iterations=4)
    source.next()
    assert factors == [0.0, 0.25, 0.5, 0.75]
    # A rate of 0 leaves the noise as it was.
    still = inversion(iterations=1, schedule=lambda progress: 0.0)
    still.next()
    assert torch.equal(
        still.streams["bank"].store.images[:8], source.streams["bank"].store.images[:8]
    )
