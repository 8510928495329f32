"""The control: inputs of independent values, which nothing trains."""

from __future__ import annotations

import pytest
import torch

from core.runtime import Runtime
from data.spec import InputSpec
from generators.mixture import Mixture
from generators.noise import Noise
from generators.replay import EMAGenerator
from generators.streams import Fresh

RUNTIME = Runtime("cpu")


def source(spec: InputSpec, student_steps: int = 1) -> Mixture:
    streams = {"fresh": Fresh(reuse=True)}
    return Mixture(Noise(spec, RUNTIME, 8), streams, RUNTIME, 8, 20, student_steps)


def test_values_are_independent_and_have_the_expected_moments() -> None:
    spec = InputSpec((2, 8, 8), (0.0, 1.0), (0.5, 0.4), (0.1, 0.05))
    x = spec.normalize(Noise(spec, RUNTIME, 1).draw(512, RUNTIME.noise("batch", 0)).input)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(2), atol=0.02)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(2), atol=0.02)
    neighbours = (x[..., 1:] * x[..., :-1]).mean()
    assert neighbours.abs() < 0.02


def test_values_stay_in_the_range() -> None:
    spec = InputSpec((1, 8, 8), (0.0, 1.0), (0.1,), (0.5,))
    x = Noise(spec, RUNTIME, 1).draw(64, RUNTIME.noise("batch", 0)).input
    assert x.min() == 0.0
    assert x.max() == pytest.approx(1.0)


def test_choices_are_equally_likely() -> None:
    words = ("<pad>", "<unk>", "a", "b")
    text = InputSpec((4, 6), (0.0, 1.0), modality="text", words=words)
    zeros, ones = (0.0,) * 5, (1.0,) * 5
    columns = InputSpec((5,), (0.0, 1.0), zeros, ones, modality="vector", groups=((1, 5),))
    x = Noise(text, RUNTIME, 1).draw(1000, RUNTIME.noise("batch", 0)).input
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(x.mean((0, 2)), torch.full((4,), 0.25), atol=0.03)
    x = Noise(columns, RUNTIME, 1).draw(4000, RUNTIME.noise("batch", 0)).input
    assert torch.allclose(x[:, 1:].sum(1), torch.ones(4000))
    assert torch.allclose(x[:, 1:].mean(0), torch.full((4,), 0.25), atol=0.03)


@pytest.mark.parametrize("student_steps", [1, 3])
def test_a_resumed_source_goes_on_with_the_same_inputs(student_steps: int) -> None:
    spec = InputSpec((1, 8, 8))
    whole, first, second = (source(spec, student_steps) for _ in range(3))
    expected = [whole.next().input for _ in range(8)]
    for _ in range(4):
        first.next()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(second.next().input, x) for x in expected[4:])
    assert len({x.sum().item() for x in expected}) == 8
    assert second.counts() == whole.counts()
    assert whole.counts()["images_synthesized"] == 8 * 8


def test_an_average_of_no_generator_is_refused() -> None:
    streams = {"fresh": Fresh(), "old": EMAGenerator(3, RUNTIME)}
    with pytest.raises(ValueError, match=r"source.streams.old: Noise has no generator"):
        Mixture(Noise(InputSpec((1, 8, 8)), RUNTIME, 8), streams, RUNTIME, 8, 20)
