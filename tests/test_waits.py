"""No step of any method makes a GPU wait, as far as a CPU can tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cycles import of_method
from tests.test_contracts import METHODS
from tests.waits import Waits

X = torch.arange(6.0)


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits(method: str) -> None:
    """A cycle with its update or round, clip, EMA and meter, after one that sets things up."""
    cycles = of_method(method)
    cycles.run()
    with Waits() as waits:
        cycles.run()
    assert not waits.found


DIGITS = "{_target_: data.builtin.digits}"
SEEN = ["student.mean=[0.3]", "student.std=[0.3]", "source.augment=[]"]
ACROSS = {
    "few labels and wrong pairs": [
        *("crd_crossmodal", "student.transform=edges", "source.labels=20", "shuffled_pairs=true"),
        *SEEN,
    ],
    "pairs by class": [
        *("mutual_crossmodal", "student.transform=part_b", *SEEN),
        f"data.dataset={{_target_: data.paired.by_class, name: x, a: {DIGITS}, b: {DIGITS}}}",
        "students.peer={model: digits_cnn, transform: part_a, mean: [0.3], std: [0.3]}",
    ],
}


@pytest.mark.parametrize("words", ACROSS.values(), ids=ACROSS)
def test_no_step_across_modalities_waits(words: list[str]) -> None:
    cycles = of_method(*words)
    cycles.run()
    with Waits() as waits:
        cycles.run()
    assert not waits.found


@pytest.mark.parametrize(
    "wait",
    [
        lambda: X.sum().item(),
        lambda: X.sum().tolist(),
        lambda: bool(X.any()),
        lambda: float(X[0]),
        lambda: X.nonzero(),
        lambda: X[X > 2],
        lambda: X.clone().__setitem__(X > 2, 0.0),
        lambda: X.unique(),
        lambda: torch.equal(X, X),
        lambda: X.repeat_interleave(torch.arange(6)),
        lambda: torch.tensor([1.0, 2.0]),
        lambda: torch.as_tensor([1.0]),
        lambda: X.new_tensor([1.0]),
        lambda: torch.distributions.Dirichlet(X + 1, validate_args=True),
    ],
)
def test_what_waits_is_found(wait: Callable[[], object]) -> None:
    with Waits() as waits:
        wait()
    assert waits.found
    assert all("test_waits.py" in line for line in waits.found)


def test_a_wait_in_the_backward_pass_is_found() -> None:
    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * gradient.sum().item()

    x = X.clone().requires_grad_()
    with Waits() as waits:
        Asks.apply(x).sum().backward()
    assert waits.found


def test_what_does_not_wait_is_not_found() -> None:
    with Waits() as waits:
        x = torch.where(X > 2, X, torch.zeros(6)).clamp(min=1)
        torch.full_like(x, 3.0)[torch.arange(3)] += x[torch.tensor_split(x.argsort(), 2)[0]]
    assert not waits.found
