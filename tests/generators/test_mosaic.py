"""The patch discriminator beside the generator: whose gradient goes where, and what is read."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.objective import Objective, Weighted
from core.runtime import Runtime
from core.schedules import cosine
from data.dataset import DataFreeError, Dataset
from data.photographs import photographs
from data.spec import InputSpec
from generators.base import Synthesis
from generators.losses import OneHot
from generators.mixture import Mixture
from generators.mosaic import Entropy, OutOfDomain, OutOfDomainInputs, PatchDiscrimination
from models.classifier import Outputs
from tests.generators.small import CLASSES, SPEC, generative, objective, same, snapshot

RUNTIME = Runtime(device="cpu")
ADAM = functools.partial(torch.optim.Adam, lr=1e-2, betas=(0.5, 0.999))


def dataset(name: str = "other", size: int = 8) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (20, size, size), dtype=np.uint8)
    read = functools.partial(lambda: (images, np.zeros(20, dtype=np.int64)))
    return Dataset(name, {"train": read, "test": read}, ["a"], RUNTIME)


def domain() -> OutOfDomain:
    return OutOfDomain(dataset(), dataset("own"), SPEC)


def patches(runtime: Runtime = RUNTIME, **kwargs: Any) -> PatchDiscrimination:
    torch.manual_seed(3)
    settings = {"width": 4, "halvings": 1, "optimizer": ADAM}
    return PatchDiscrimination(domain(), SPEC, runtime, **settings | kwargs)


def synthesis(images: Tensor) -> Synthesis:
    return Synthesis(images, Outputs(torch.zeros(len(images), CLASSES)))


def random_images(count: int = 6) -> Tensor:
    return torch.rand(count, *SPEC.shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_the_generators_gradient_is_that_of_the_binary_cross_entropy(halvings: int) -> None:
    loss = patches(halvings=halvings)
    images = random_images().requires_grad_()
    value = loss(synthesis(images))
    (gradient,) = torch.autograd.grad(value, images)
    twin = copy.deepcopy(loss.discriminator)
    logits = twin((images - SPEC.mean[0]) / SPEC.std[0])
    assert logits.shape == (6, 1, 8 >> halvings, 8 >> halvings)
    total = torch.zeros(())
    for logit in logits.flatten():
        total = total - torch.sigmoid(logit).log() / logits.numel()
    torch.testing.assert_close(value, total)
    (expected,) = torch.autograd.grad(total, images)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().sum() > 0


def test_a_patch_is_all_that_one_answer_depends_on() -> None:
    """A logit of a discriminator with one halving looks at 4 by 4 pixels."""
    images = random_images(1).requires_grad_()
    logits = patches().discriminator(images)
    (gradient,) = torch.autograd.grad(logits[0, 0, 2, 1], images)
    rows, columns = (gradient[0, 0] != 0).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 6, 1, 4)


def test_the_generators_step_leaves_the_discriminator_alone_and_the_other_way_round() -> None:
    loss = patches()
    before = snapshot(loss.discriminator)
    images = random_images().requires_grad_()
    loss(synthesis(images)).backward()
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())
    assert same(before, snapshot(loss.discriminator))
    images.grad = None
    with torch.no_grad():
        loss.commit(synthesis(images))
    assert images.grad is None
    assert all(not p.requires_grad and p.grad is None for p in loss.parameters())
    moved = snapshot(loss.discriminator)
    assert all(not torch.equal(before[name], moved[name]) for name in before)


def test_the_discriminators_step_is_one_of_adam_on_real_and_made() -> None:
    loss = patches()
    twin = copy.deepcopy(loss.discriminator).requires_grad_(True)
    optimizer = ADAM(twin.parameters())
    images = random_images()
    noise = RUNTIME.noise("out of domain", 0)
    real = dataset().open("train").batch(torch.randint(20, (6,), generator=noise))[0]
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    a, b = (twin((x - SPEC.mean[0]) / SPEC.std[0]) for x in (real, images))
    ((bce(a, torch.ones_like(a)) + bce(b, torch.zeros_like(b))) / 2).backward()
    optimizer.step()
    loss.commit(synthesis(images))
    for p, q in zip(loss.discriminator.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q.detach().requires_grad_(False))


def test_it_learns_to_tell_patches_apart() -> None:
    loss = patches()
    flat = torch.full((20, *SPEC.shape), 0.5)
    before = loss(synthesis(flat)).item()
    for _ in range(100):
        loss.commit(synthesis(flat))
    assert loss(synthesis(flat)).item() > before + 0.2


def mosaic(runtime: Runtime = RUNTIME, weight: float = 1.0) -> Mixture:
    losses = {"one_hot": Weighted(OneHot()), "patches": Weighted(patches(runtime), weight)}
    streams = {"out_of_domain": OutOfDomainInputs(domain(), fraction=0.5)}
    return generative(runtime, objective=Objective(losses), streams=streams)


def test_the_source_trains_the_generator_and_not_the_discriminator() -> None:
    source, without = mosaic(), mosaic(weight=0.0)
    loss = source.synthesizer.observe.objective.losses["patches"].loss
    owned = {id(p) for p in loss.parameters()}
    assert owned
    assert not owned & {id(p) for p in source.synthesizer.parameters}
    for s in (source, without):
        s.next()
    assert loss.updates == source.synthesizer.steps == 1
    assert not same(snapshot(source.synthesizer.generator), snapshot(without.synthesizer.generator))


def test_what_is_read_is_counted_and_is_not_called_synthesized() -> None:
    source = mosaic()
    batches = [source.next() for _ in range(4)]
    counts = source.counts()
    assert counts["out_of_domain_inputs_read"] == 2 * 8 + 4 * 3
    assert counts["images_synthesized"] == 2 * 8 + 4 * 3
    assert counts["real_training_inputs_read"] == 0
    own = dataset().open("train").batch(slice(None))[0].flatten(1)
    for batch in batches:
        assert batch.label is None
        drawn = batch.input[3:].flatten(1)
        assert (torch.cdist(drawn, own).amin(1) == 0).all()
    assert "out_of_domain_inputs_read" not in generative(objective=objective()).counts()


def test_a_resumed_source_goes_on_to_the_same_bits() -> None:
    first = mosaic()
    for _ in range(3):
        first.next()
    second = mosaic()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(4):
        assert torch.equal(first.next().input, second.next().input)
    one, two = (s.synthesizer.observe.objective.losses["patches"].loss for s in (first, second))
    assert same(snapshot(one.discriminator), snapshot(two.discriminator))
    assert one.optimizer.state_dict()["state"][0]["step"] == 4
    assert first.counts() == second.counts()


def test_the_discriminators_learning_rate_follows_its_schedule() -> None:
    loss = patches(schedule=cosine())
    loss.at(0.5)
    assert loss.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)


def test_the_teachers_own_data_stays_closed() -> None:
    with pytest.raises(DataFreeError, match="may not come from own"):
        OutOfDomain(dataset("own"), dataset("own"), SPEC)
    with pytest.raises(ValueError, match=r"\[1, 8, 8\].*has \[1, 12, 12\]"):
        OutOfDomain(dataset(size=12), dataset("own"), SPEC)
    with pytest.raises(ValueError, match="halvings=4 does not fit"):
        patches(halvings=4)


def test_entropy_is_that_of_each_answer() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [500.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, -1.0]])
    logits.requires_grad_()
    value = Entropy()(Synthesis(torch.zeros(3, 1, 8, 8), Outputs(logits)))
    p = logits[2].softmax(0)
    expected = (torch.tensor(4.0).log() - (p * p.log()).sum()) / 3
    torch.testing.assert_close(value, expected)
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (32, 32)), (1, (28, 20))])
def test_photographs_fit_any_teacher(channels: int, size: tuple[int, int]) -> None:
    given = InputSpec((channels, *size), mean=(0.0,) * channels, std=(1.0,) * channels)
    data = photographs(RUNTIME, given, count=40)
    images, labels = data.open("train").batch(slice(None))
    assert images.shape == (40, channels, *size)
    assert set(labels.tolist()) == {0, 1}
    assert images.std((1, 2, 3)).median() > 0.02
    again = photographs(RUNTIME, given, count=40).open("train").batch(slice(None))[0]
    assert torch.equal(images, again)
    assert len(data.open("test")) == 5


def test_photographs_have_one_or_three_channels() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels"):
        photographs(RUNTIME, InputSpec((2, 8, 8), mean=(0.0, 0.0), std=(1.0, 1.0)))
