"""Where a batch's earlier images come from, what replays learn, and that nothing else changes."""

import functools
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from core.runtime import Runtime
from data.spec import InputSpec
from generators.losses import OneHot
from generators.networks import StandardGenerator
from generators.replay import VAE, EMAGenerator
from generators.streams import Stream
from tests.generators.small import (
    CLASSES,
    classifier,
    generative,
    objective,
    same,
    snapshot,
    student,
    teacher,
)
from tests.generators.test_vae import ADAM, vae


def twin(runtime: Runtime | None = None, **kwargs: Any) -> EMAGenerator:
    return EMAGenerator(CLASSES, runtime or Runtime(device="cpu"), **kwargs)


def replay(kind: str, **kwargs: Any) -> Stream:
    return twin(**kwargs) if kind == "ema" else vae(**kwargs)


def test_the_twin_follows_the_closed_form() -> None:
    """θ̃_n = d^n θ_0 + (1 − d) Σ_k d^(n−k) θ_k, once a round of updates."""
    decay = 0.7
    source = generative(streams={"replay": twin(decay=decay)}, updates=2, student_steps=3)
    history = [[p.detach().clone() for p in source.synthesizer.generator.parameters()]]
    for step in range(12):
        source.next()
        if step % 3 == 0:
            history.append([p.detach().clone() for p in source.synthesizer.generator.parameters()])
    n = len(history) - 1
    assert n == 4
    for i, average in enumerate(source.streams["replay"].ema.module.parameters()):
        expected = decay**n * history[0][i]
        for k in range(1, n + 1):
            expected = expected + (1 - decay) * decay ** (n - k) * history[k][i]
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(average, history[n][i])


@pytest.mark.parametrize("kind", ["ema", "vae"])
@pytest.mark.parametrize("conditional", [False, True])
def test_a_batch_is_fresh_images_and_then_earlier_ones(kind: str, conditional: bool) -> None:
    options = {} if kind == "ema" else {"conditional": conditional}
    source = generative(
        streams={"replay": replay(kind, fraction=0.4, **options)},
        batch_size=10,
        conditional=conditional,
    )
    source.next()
    drawn = []
    original = source.streams["replay"].draw
    source.streams["replay"].draw = lambda *args: drawn.append(original(*args)) or drawn[-1]
    batch = source.next()  # without an update, so that the generator is as it was
    fresh = source.synthesizer.draw(6, source.runtime.noise("batch", 1))
    [earlier] = drawn
    assert torch.equal(batch.input, torch.cat([fresh.input, earlier.input]))
    assert not batch.input.requires_grad
    if conditional:
        assert torch.equal(batch.label, torch.cat([fresh.label, earlier.label]))
    else:
        assert batch.label is None


def test_the_twin_draws_with_its_own_weights() -> None:
    """Not with the generator's, although it draws in the same way."""
    source = generative(streams={"replay": twin(decay=0.9)}, conditional=True, student_steps=1)
    for _ in range(3):
        source.next()
    drawn = source.streams["replay"].draw(8, torch.Generator().manual_seed(5))
    images, label = drawn.input, drawn.label
    noise = torch.Generator().manual_seed(5)
    z = torch.randn(8, 5, generator=noise)
    y = torch.randint(CLASSES, (8,), generator=noise)
    with torch.no_grad():
        assert torch.equal(images, source.streams["replay"].ema.module(z, y))
        assert not torch.equal(images, source.synthesizer.generator(z, y))
    assert torch.equal(label, y)


def test_a_twin_without_memory_is_the_generator() -> None:
    """In every respect: it uses the batch's own statistics, too."""
    source = generative(streams={"replay": twin(decay=0.0)}, student_steps=1)
    for _ in range(3):
        source.next()
    images = source.streams["replay"].draw(8, torch.Generator().manual_seed(5)).input
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert torch.equal(images, source.synthesizer.generator(z))


def test_labels_are_left_out_where_a_part_has_none() -> None:
    """An unconditional twin knows no classes, whatever a loss of the generator's asks for."""
    loss = OneHot()
    loss.needs_label = True
    source = generative(objective=objective(one_hot=loss), streams={"replay": twin()})
    assert source.next().label is None


@pytest.mark.parametrize("kind", ["ema", "vae"])
@pytest.mark.parametrize("reuse", [False, True])
def test_nothing_but_the_replay_learns_from_replaying(kind: str, reuse: bool) -> None:
    t, s = teacher(), student()
    before = snapshot(t), snapshot(s)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    options = {"student_steps": 1, "size": 6} if reuse else {}
    source = generative(
        teacher=t,
        student=s,
        optimizer=still,
        streams={"replay": replay(kind)},
        reuse=reuse,
        **options,
    )
    weights = [p.detach().clone() for p in source.synthesizer.generator.parameters()]
    for _ in range(3):
        source.next()
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights, source.synthesizer.generator.parameters(), strict=True)
    )
    for net in (source.synthesizer.generator, t, s, source.synthesizer.observe.teacher):
        assert all(p.grad is None for p in net.parameters())
    assert same(snapshot(t), before[0])
    assert same(snapshot(s), before[1])
    assert all(m.training for m in s.modules())


def test_the_generator_learns_as_it_would_without() -> None:
    """What is replayed reaches the student alone."""
    for kind in ("ema", "vae"):
        source = generative(objective=objective(one_hot=OneHot()), streams={"replay": replay(kind)})
        alone = generative(objective=objective(one_hot=OneHot()))
        for _ in range(5):
            source.next()
            alone.next()
        for a, b in zip(
            source.synthesizer.generator.parameters(),
            alone.synthesizer.generator.parameters(),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["ema", "vae"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_restored_source_continues_to_the_same_bits(
    kind: str, conditional: bool, stop: int
) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        part = twin() if kind == "ema" else vae(conditional=conditional)
        return generative(streams={"replay": part}, conditional=conditional, student_steps=3)

    source = make()
    for _ in range(stop):
        source.next()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    restored = make()
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.report() == source.report()
    torch.rand(3)
    for _ in range(5):
        a, b = source.next(), restored.next()
        assert torch.equal(a.input, b.input)
        assert (a.label is None and b.label is None) or torch.equal(a.label, b.label)
    assert same(
        _flat(source.streams["replay"].state_dict()), _flat(restored.streams["replay"].state_dict())
    )
    assert source.counts() == restored.counts()
    assert source.report() == restored.report()


def _flat(state: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(state, dict):
        parts = [_flat(v, f"{path}.{k}") for k, v in state.items()]
        return {k: v for part in parts for k, v in part.items()}
    if isinstance(state, list):
        return _flat(dict(enumerate(state)), path)
    return {path: torch.as_tensor(-1.0 if state is None else state)}


def test_counts_and_reports() -> None:
    source = generative(streams={"replay": vae(fraction=0.5)}, batch_size=6, student_steps=2)
    for _ in range(4):
        source.next()
    assert source.counts() == {
        "images_synthesized": 2 * 8 + 4 * 6,
        "real_training_inputs_read": 0,
    }
    assert source.report()["replay"].isfinite()
    assert "replay" not in generative(streams={"replay": twin()}).report()


@pytest.mark.parametrize("kind", ["ema", "vae"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 12, 20)])
def test_shapes_and_bf16(kind: str, shape: tuple[int, ...]) -> None:
    runtime = Runtime(device="cpu", precision="bf16")
    channels = shape[0]
    spec = InputSpec(shape, (-1.0, 2.0), (0.1,) * channels, (0.4,) * channels)
    net = classifier(channels=channels)
    net.spec = spec
    net = net.eval().requires_grad_(False)
    generator, decoder = (
        StandardGenerator(spec, CLASSES, latent_size=5, channels=8, output="tanh_bn")
        for _ in range(2)
    )
    part = twin(runtime) if kind == "ema" else VAE(decoder, net, spec, CLASSES, runtime, ADAM)
    source = generative(
        runtime,
        generator=generator,
        teacher=net,
        student=net,
        streams={"replay": part},
        batch_size=9,
    )
    for _ in range(3):
        batch = source.next()
    assert batch.input.shape == (9, *shape)
    assert batch.input.dtype == torch.float32
    assert batch.input.isfinite().all()
    assert all(torch.as_tensor(v).isfinite() for v in source.report().values())


@pytest.mark.parametrize(
    ("fraction", "batch_size", "replayed"), [(0.5, 6, 3), (0.01, 6, 1), (0.99, 6, 5), (1 / 9, 9, 1)]
)
def test_share(fraction: float, batch_size: int, replayed: int) -> None:
    source = generative(streams={"replay": twin(fraction=fraction)}, batch_size=batch_size)
    assert source.sizes == {"fresh": batch_size - replayed, "replay": replayed}
    assert len(source.next().input) == batch_size


def test_settings_that_do_not_fit() -> None:
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="fraction"):
            twin(fraction=fraction)
    with pytest.raises(ValueError, match="decay"):
        generative(streams={"replay": twin(decay=1.0)})
    with pytest.raises(ValueError, match="batch_size of at least 2"):
        generative(streams={"replay": twin()}, batch_size=1)
    assert len(generative(streams={"replay": vae()}, batch_size=2).next().input) == 2
