"""Pixels optimised directly: it works, repeats itself, stops cleanly and touches nothing else."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.runtime import Runtime, Stopped
from generators.losses import L2, Adversarial, BatchNormStatistics, OneHot, TotalVariation
from generators.mixture import Mixture
from generators.rounds import draw_classes
from generators.views import Jitter
from tests.generators.small import (
    CLASSES,
    SPEC,
    inversion,
    objective,
    same,
    snapshot,
    student,
    teacher,
)


class StoppingRuntime(Runtime):
    """Asks to stop in the n-th iteration from when it is armed."""

    remaining: int | None = None

    def asked_to_stop(self, index: int) -> bool:
        if self.remaining is not None:
            self.remaining -= 1
            self.stop_requested = self.remaining <= 0
        return super().asked_to_stop(index)


def prior() -> dict:
    return {
        "one_hot": OneHot(),
        "statistics": BatchNormStatistics(),
        "variation": TotalVariation(SPEC, "l1"),
        "l2": L2(SPEC),
    }


def flatten(state: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(state, dict):
        parts = [flatten(value, f"{path}.{key}") for key, value in state.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {path: torch.as_tensor(state).clone()}


def test_batches_come_from_the_bank() -> None:
    source = inversion(student_steps=2, capacity=12)
    sizes = []
    for _ in range(5):
        batch = source.next()
        sizes.append(len(source.streams["bank"].store))
        assert batch.input.shape == (6, *SPEC.shape)
        assert batch.input is batch.input
        assert batch.index is not None
        assert batch.label is not None
        assert batch.label.max() < CLASSES
        assert batch.input.min() >= 0
        assert batch.input.max() <= 1 + 1e-6
    assert sizes == [8, 8, 12, 12, 12]
    assert source.counts() == {
        "images_synthesized": 24,
        "real_training_inputs_read": 0,
    }
    assert set(source.report()) == {"one_hot", "activation", "adversarial", "statistics"}


def test_it_lowers_its_objective_and_aims_at_the_labels() -> None:
    short = inversion(objective=objective(**prior()), iterations=1)
    long = inversion(objective=objective(**prior()), iterations=150)
    totals = []
    for source in (short, long):
        source.next()
        totals.append(sum(value.item() for value in source.report().values()))
    assert totals[1] < 0.8 * totals[0]


def test_every_image_moves_towards_the_class_aimed_at() -> None:
    aim = {"objective": objective(one_hot=OneHot()), "size": 20}
    confidence = []
    for iterations, rate in ((1, 0.0), (100, 1.0)):
        source = inversion(**aim, iterations=iterations, schedule=lambda _, rate=rate: rate)
        source.next()
        images, label = (
            source.streams["bank"].store.images[:20] / 255,
            source.streams["bank"].store.labels[:20],
        )
        confidence.append(teacher()(images).logits.softmax(1).gather(1, label[:, None]))
    assert (confidence[1] > confidence[0]).all()


def test_only_images_in_the_value_range_are_seen() -> None:
    source = inversion(iterations=10, schedule=lambda _: 20.0)
    ends: list[float] = []
    source.synthesizer.observe.teacher.register_forward_pre_hook(
        lambda _, args: ends.extend((args[0].min().item(), args[0].max().item()))
    )
    source.next()
    assert min(ends) == pytest.approx(0, abs=1e-6)
    assert max(ends) == pytest.approx(1, abs=1e-6)


def test_it_repeats_itself() -> None:
    a, b = inversion(), inversion()
    torch.manual_seed(10)
    first = [a.next().input for _ in range(3)]
    torch.manual_seed(11)
    second = [b.next().input for _ in range(3)]
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_restored_source_continues_to_the_same_bits(stop: int) -> None:
    source = inversion(student_steps=2)
    for _ in range(stop):
        source.next()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    restored = inversion(student_steps=2)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.report() == source.report()
    for _ in range(4):
        a, b = source.next(), restored.next()
        assert torch.equal(a.input, b.input)
        assert torch.equal(a.label, b.label)
        assert torch.equal(a.index, b.index)
    assert same(flatten(source.state_dict()), flatten(restored.state_dict()))


def drawing(runtime: Runtime | None = None) -> Mixture:
    """Rounds over a variable that draws in every call, as generators of signals and texts do."""
    source = inversion(runtime, student_steps=1)
    source.synthesizer.variable.register_forward_hook(  # type: ignore[attr-defined]
        lambda module, args, made: (made[0] + 0.1 * torch.rand_like(made[0]), made[1])
    )
    torch.manual_seed(5)
    return source


def test_a_stop_within_a_round_changes_nothing() -> None:
    undisturbed = drawing()
    expected = [undisturbed.next().input for _ in range(2)]

    runtime = StoppingRuntime(device="cpu")
    source = drawing(runtime)
    assert torch.equal(source.next().input, expected[0])
    before = flatten(source.state_dict())
    runtime.remaining = 3
    with pytest.raises(Stopped):
        source.next()
    assert same(flatten(source.state_dict()), before)
    runtime.remaining, runtime.stop_requested = None, False
    assert torch.equal(source.next().input, expected[1])


def test_student_and_teacher_stay_as_they_were() -> None:
    """Failures 2, 3 and 4."""
    t, s = teacher(), student()
    before_t, before_s = snapshot(t), snapshot(s)
    source = inversion(teacher=t, student=s)
    source.next()
    assert same(snapshot(t), before_t)
    assert same(snapshot(s), before_s)
    assert all(m.training for m in s.modules())
    for net in (t, s, source.synthesizer.observe.teacher, source.synthesizer.observe.student):
        assert all(p.grad is None for p in net.parameters())


def test_a_new_run_does_not_see_an_earlier_ones_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure 8: an image pool on disk that picked up another run's images."""
    monkeypatch.chdir(tmp_path)
    inversion().next()
    assert len(inversion().streams["bank"].store) == 0
    assert list(tmp_path.iterdir()) == []


def test_adversarial_inversion_depends_on_the_student() -> None:
    adi = {"objective": objective(one_hot=OneHot(), adversarial=Adversarial("js", 3.0))}
    a = inversion(**adi).next().input
    other = student()
    torch.nn.init.normal_(other.module.head.weight)
    b = inversion(**adi, student=other).next().input
    assert not torch.equal(a, b)


def test_jitter_shifts_and_mirrors_the_whole_batch_alike() -> None:
    ramp = torch.arange(64.0).view(1, *SPEC.shape).repeat(3, 1, 1, 1)
    seen = {False: set(), True: set()}
    for flip in seen:
        jitter = Jitter(2, flip)
        for seed in range(200):
            x = jitter(ramp, torch.Generator().manual_seed(seed))
            assert torch.equal(x, jitter(ramp, torch.Generator().manual_seed(seed)))
            assert torch.equal(x[0], x[2])
            assert torch.equal(x.sum(), ramp.sum())
            seen[flip].add(tuple(x[0].flatten().tolist()))
    assert len(seen[False]) == 25
    assert len(seen[True]) == 50


def test_classes_are_drawn_in_balance() -> None:
    drawn = draw_classes(10, 4, torch.Generator().manual_seed(0))
    assert drawn.shape == (10,)
    for block in (drawn[:4], drawn[4:8]):
        assert sorted(block.tolist()) == [0, 1, 2, 3]
    orders = {
        tuple(draw_classes(4, 4, torch.Generator().manual_seed(i)).tolist()) for i in range(200)
    }
    assert len(orders) == 24


def test_teacher_without_batchnorm() -> None:
    with pytest.raises(ValueError, match=r"no BatchNorm layers.*dafl, zskt, dfad"):
        inversion(teacher=teacher(norm=False))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        inversion(iterations=0)


def test_bf16_runs() -> None:
    """Failure 7."""
    source = inversion(Runtime(device="cpu", precision="bf16"))
    assert source.next().input.isfinite().all()
    assert all(
        v.isfinite() and v.dtype == torch.float32 for v in source.synthesizer.losses.values()
    )
