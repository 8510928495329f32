"""A trained generator: its schedule, what it may touch, and that a resume repeats the bits."""

import copy
import functools
import io
import itertools
from collections.abc import Callable

import pytest
import torch

from core.runtime import Runtime
from core.schedules import constant
from data.augment import RandomAffine
from generators.base import Synthesis, SynthesisLoss
from generators.losses import Adversarial, BatchNormStatistics, InformationEntropy, OneHot
from generators.mixture import Mixture
from tests.generators.small import (
    CLASSES,
    SPEC,
    generative,
    inversion,
    objective,
    same,
    snapshot,
    student,
    teacher,
)


def test_batches_follow_the_schedule() -> None:
    source = generative(student_steps=3, updates=2)
    parameters = []
    for step in range(6):
        batch = source.next()
        assert batch.input.shape == (6, *SPEC.shape)
        assert batch.input is batch.input
        assert not batch.input.requires_grad
        assert batch.label is None
        assert source.synthesizer.steps == 2 * (step // 3 + 1)
        parameters.append(snapshot(source.synthesizer.generator.linear))
    changed = [not same(a, b) for a, b in itertools.pairwise(parameters)]
    assert changed == [False, False, True, False, False]
    assert source.counts() == {
        "images_synthesized": 4 * 8 + 6 * 6,
        "real_training_inputs_read": 0,
    }
    assert set(source.report()) == {
        "one_hot",
        "activation",
        "adversarial",
        "statistics",
        "lr_generator",
    }


def test_student_and_teacher_stay_as_they_were() -> None:
    """Failures 2, 3 and 4: gradients, BatchNorm statistics and mode of both networks."""
    t, s = teacher(), student()
    before_t, before_s = snapshot(t), snapshot(s)
    source = generative(teacher=t, student=s)
    for _ in range(4):
        source.next()
    assert same(snapshot(t), before_t)
    assert same(snapshot(s), before_s)
    assert all(m.training for m in s.modules())
    assert not any(m.training for m in t.modules())
    views = (source.synthesizer.observe.teacher, source.synthesizer.observe.student)
    for net in (t, s, *views):
        assert all(p.grad is None for p in net.parameters())
    assert not any(p.requires_grad for view in views for p in view.parameters())


def test_gradients_already_in_the_student_are_kept() -> None:
    s = student()
    for p in s.parameters():
        p.grad = torch.ones_like(p)
    generative(student=s).next()
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in s.parameters())


def test_hooks_fire_in_synthesis_only() -> None:
    """Failure 5: the views carry the hooks, the networks themselves none."""
    t = teacher()
    source = generative(teacher=t)
    source.next()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in t.module.modules()]
    assert sum(hooks) == 0
    assert t(torch.rand(2, *SPEC.shape)).statistics == []


def test_adversarial_loss_sees_the_student_of_now() -> None:
    """Failure 1: zero where the student is the teacher, and only there."""
    t = teacher()
    s = copy.deepcopy(t).train().requires_grad_(True)
    source = generative(teacher=t, student=s, objective=objective(adv=Adversarial()))
    source.next()
    assert source.report()["adv"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for p in s.parameters():
            p.add_(0.5 * torch.randn_like(p))
    source.next()
    source.next()
    assert source.report()["adv"].item() < -1e-3


@pytest.mark.parametrize("make", [generative, inversion])
def test_an_update_while_all_losses_are_off_changes_nothing(make: Callable[..., Mixture]) -> None:
    source = make(objective=objective(adv=Adversarial()), student_steps=1)
    source.synthesizer.observe.objective.losses["adv"].schedule = constant(warmup=0.5)
    source.next()
    assert (source.report()["adv"], source.updates) == (0, 1)


def test_student_is_not_run_for_nothing() -> None:
    assert generative(objective=objective(one_hot=OneHot())).synthesizer.observe.student is None


def test_generator_lowers_its_objective() -> None:
    source = generative(
        objective=objective(one_hot=OneHot(), balance=InformationEntropy()), student_steps=1
    )
    totals = []
    for _ in range(60):
        source.next()
        totals.append(sum(v.item() for k, v in source.report().items() if k != "lr_generator"))
    assert totals[-1] < totals[0] - 0.05


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("stop", [1, 4])
def test_restored_source_continues_to_the_same_bits(conditional: bool, stop: int) -> None:
    options = {"conditional": conditional, "student_steps": 3, "schedule": lambda p: 1 - p}
    source = generative(**options)
    for _ in range(stop):
        source.next()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    restored = generative(**options)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.report() == source.report()
    for _ in range(5):
        a, b = source.next(), restored.next()
        assert torch.equal(a.input, b.input)
        assert (a.label is None and b.label is None) or torch.equal(a.label, b.label)
    assert same(
        source.synthesizer.generator.state_dict(), restored.synthesizer.generator.state_dict()
    )
    assert source.counts() == restored.counts()
    assert source.report() == restored.report()


def test_noise_does_not_depend_on_the_global_generator() -> None:
    a, b = generative(), generative()
    torch.manual_seed(10)
    first = [a.next().input for _ in range(3)]
    torch.manual_seed(11)
    second = [b.next().input for _ in range(3)]
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_noise_differs_between_ranks_and_weights_do_not() -> None:
    """Failure 11."""
    first = generative()
    runtime = Runtime(device="cpu")
    runtime.rank = 1
    second = generative(runtime)
    assert same(first.synthesizer.generator.state_dict(), second.synthesizer.generator.state_dict())
    assert not torch.equal(first.next().input, second.next().input)


def test_conditional_batches_carry_their_classes() -> None:
    source = generative(conditional=True, batch_size=64)
    label = source.next().label
    assert label is not None
    assert label.dtype == torch.int64
    assert set(label.tolist()) == set(range(CLASSES))


def test_a_loss_can_ask_for_classes() -> None:
    loss = OneHot()
    loss.needs_label = True
    assert generative(objective=objective(one_hot=loss)).next().label is not None


def test_schedule_scales_the_learning_rate() -> None:
    source = generative(schedule=lambda progress: 1 - progress, steps=4, student_steps=1)
    rates = []
    for _ in range(4):
        source.next()
        rates.append(source.report()["lr_generator"])
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_clip_bounds_the_step() -> None:
    sgd = functools.partial(torch.optim.SGD, lr=1.0)
    source = generative(optimizer=sgd, clip=1e-3)
    before = [p.detach().clone() for p in source.synthesizer.generator.parameters()]
    source.next()
    after = source.synthesizer.generator.parameters()
    moved = torch.stack([(a - b).norm() for a, b in zip(after, before, strict=True)]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


def test_reuse_hands_on_the_images_of_the_update() -> None:
    seen = []
    source = generative(student_steps=1, size=6, reuse=True)
    source.synthesizer.observe.teacher.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    for step in range(3):
        batch = source.next()
        assert torch.equal(batch.input, seen[step])
        assert not batch.input.requires_grad
    assert source.counts()["images_synthesized"] == 3 * 6


class Memory(SynthesisLoss):
    """Holds on to what it was shown, and to what it was told to remember."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Synthesis] = []
        self.kept: list[Synthesis] = []

    def forward(self, synthesis: Synthesis) -> torch.Tensor:
        self.shown.append(synthesis)
        return synthesis.images.mean()

    def commit(self, synthesis: Synthesis) -> None:
        self.kept.append(synthesis)


def test_the_student_gets_augmented_images_and_the_generator_is_none_the_wiser() -> None:
    """Each batch in its own way, the same after a resume; updates see the images as they are."""
    plain, augmented = generative(), generative(augment=[RandomAffine(SPEC, 20.0)])
    for step in range(4):
        a, b = plain.next(), augmented.next()
        assert not torch.equal(a.input, b.input)
        expected = RandomAffine(SPEC, 20.0)(a.input, plain.runtime.noise("augment", step))
        assert torch.equal(b.input, expected)
        assert b.input is b.input
    assert same(snapshot(plain.synthesizer.generator), snapshot(augmented.synthesizer.generator))


def test_an_update_looks_through_views_and_the_student_gets_the_images_themselves() -> None:
    memory, second = Memory(), Memory()
    second.needs_local = True
    source = generative(
        objective=objective(memory=memory, second=second),
        views=[RandomAffine(SPEC, 20.0)],
        local_views=[RandomAffine(SPEC, 5.0)],
    )
    still = copy.deepcopy(source.synthesizer.generator)
    source.next()
    [shown], images = memory.shown, still(memory.shown[0].latent)
    turned = RandomAffine(SPEC, 20.0)(images, source.runtime.noise("view", 0))
    torch.testing.assert_close(shown.images, turned)
    local = RandomAffine(SPEC, 5.0)(images, source.runtime.noise("local view", 0))
    assert shown.local is not None
    torch.testing.assert_close(shown.local.logits, teacher()(local).logits)


def test_soft_targets_are_drawn_for_the_classes() -> None:
    memory = Memory()
    hard = functools.partial(torch.nn.functional.one_hot, num_classes=CLASSES)
    source = generative(objective=objective(memory=memory), targets=lambda y, _: hard(y).float())
    batch = source.next()
    [shown] = memory.shown
    assert batch.label is not None
    assert shown.label is not None
    assert shown.target is not None
    assert torch.equal(shown.target.argmax(1), shown.label)
    assert generative(objective=objective(memory=memory)).next().label is None


def test_losses_see_the_latent_and_remember_each_update_once() -> None:
    memory = Memory()
    source = generative(objective=objective(memory=memory), updates=2)
    still = copy.deepcopy(source.synthesizer.generator)
    for _ in range(4):  # of which two begin with updates
        source.next()
    assert len(memory.shown) == len(memory.kept) == source.synthesizer.steps == 4
    first = memory.shown[0]
    assert torch.equal(still(first.latent), first.images)
    for shown, kept in zip(memory.shown, memory.kept, strict=True):
        assert torch.equal(shown.images, kept.images)
        assert not kept.images.requires_grad


def test_statistics_reach_the_generator() -> None:
    source = generative(objective=objective(statistics=BatchNormStatistics()), student_steps=1)
    gaps = []
    for _ in range(40):
        source.next()
        gaps.append(source.report()["statistics"].item())
    assert gaps[-1] < 0.9 * gaps[0]
