"""A black-box teacher: it answers with probabilities and shows nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from core.runtime import Runtime
from data.modality import require_amounts
from models.classifier import Classifier, Outputs
from models.meter import Meter


class BlackBox(Classifier):
    """A teacher behind an interface: inputs in, probabilities out, every query counted.

    The setting of DFME (Truong et al.) and MAZE (Kariyappa et al., both CVPR 2021). The logits in
    its ``Outputs`` are recovered from the probabilities, log p − mean log p (DFME, section 4.4):
    the true ones up to a constant per input, and finite where p is 0 in float32. It has neither
    features nor statistics, neither parameters nor a state with weights.

    Inputs that require a gradient get an estimate of it, from ``directions`` more queries each: see
    :func:`forward_differences`. So every loss that reads only logits works unchanged. The papers
    difference the whole loss instead, student included, and in the space before the generator's
    tanh. Here the gradient through the student and through the generator is exact, and only the
    teacher's is estimated, in the space of inputs; to first order the expectation is the same.

    The noise depends on the number of queries so far: restore ``meter``, and a resumed run draws
    the same directions.

    Args:
        teacher: on its device; its weights stay out of reach.
        runtime: noise, and how many processes share the budget.
        directions: m, the queries for each gradient of one input (DFME 1, MAZE 10).
        epsilon: ε, the length of a step in a direction, as a share of the value range.
        budget: the most queries of all processes together; None means no limit.

    Attributes:
        meter: the count, to be checkpointed; the directions of a gradient count too.

    Raises:
        ValueError: for counts below 1 and an ε of 0 or less.
    """

    meter: Meter

    def __init__(
        self,
        teacher: Classifier,
        runtime: Runtime,
        directions: int = 1,
        epsilon: float = 1e-3,
        budget: int | None = None,
    ) -> None:
        if min(directions, 1 if budget is None else budget) < 1 or epsilon <= 0:
            raise ValueError(
                "teacher.black_box needs directions of at least 1, epsilon above 0, and a budget "
                "of at least 1 or null"
            )
        meter = Meter(None if budget is None else budget // runtime.world_size)
        hidden, takes = Sealed(teacher.frozen()), teacher.takes
        super().__init__(hidden, teacher.spec, teacher.classes, meter=meter, takes=takes)
        self.runtime, self.directions = runtime, directions
        low, high = takes.range
        self.epsilon, self.budget = epsilon * (high - low), budget
        self.hidden_parameters = teacher.parameter_count()

    @property
    def queries_per_gradient(self) -> int:
        """Queries for one input: its own and one for each direction."""
        return 1 + self.directions

    def forward(self, x: Tensor) -> Outputs:
        """Answer inputs [B, *shape] in the value range; in float32 whatever the autocast.

        Raises:
            ValueError: if the budget does not suffice, and for a gradient by inputs that cannot be
                moved a little; no query is made then.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            require_amounts(
                self.takes,
                "a gradient estimated by queries",
                "choose a method that needs none, or teacher.black_box=null",
            )
            return Outputs(_Estimated.apply(x, self))
        return Outputs(self.ask(x))

    @torch.no_grad()
    def ask(self, x: Tensor) -> Tensor:
        """Recovered logits [B, C] without gradient."""
        self.meter.add(len(x))
        with torch.autocast(x.device.type, enabled=False), without_tf32():
            p = self.module(x)
        log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()
        return log_p - log_p.mean(dim=1, keepdim=True)

    def frozen(
        self, taps: Iterable[str] = (), statistics: bool = False, by_batch: bool = False
    ) -> Classifier:
        """Itself: a black box holds nothing that training could change.

        Raises:
            ValueError: if more than answers is asked for.
        """
        if taps := tuple(taps):
            raise sealed(f"the features {', '.join(taps)}")
        if statistics or by_batch:
            raise sealed("BatchNorm statistics")
        return self

    def batchnorms(self) -> list[Any]:
        raise sealed("BatchNorm statistics")

    def parameter_count(self) -> int:
        return self.hidden_parameters


def sealed(wanted: str) -> ValueError:
    return ValueError(
        f"a loss reads {wanted} of the teacher, but a black box only answers with probabilities: "
        "use method=dfme or maze, whose losses read nothing else, or teacher.black_box=null"
    )


class Sealed(nn.Module):
    """Inputs to probabilities; the network lies in a closure, which no traversal enters."""

    answer: Callable[[Tensor], Tensor]

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.answer = lambda x: network(x).logits.softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x)


class _Estimated(torch.autograd.Function):
    """The black box's answers; backward estimates what autograd would compute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, box: BlackBox) -> Tensor:
        logits = box.ask(x)
        ctx.save_for_backward(x, logits)
        ctx.box = box
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        x, logits = ctx.saved_tensors
        box = ctx.box
        noise = box.runtime.noise("black_box", box.meter.queries)
        directions = unit_directions(x, box.directions, noise)
        return forward_differences(box.ask, x, logits, upstream, directions, box.epsilon), None


def unit_directions(x: Tensor, count: int, noise: torch.Generator) -> Iterator[Tensor]:
    """``count`` times, for each input of x [B, *shape], a direction drawn from the unit sphere."""
    for _ in range(count):
        u = torch.randn(x.shape, generator=noise, device=x.device, dtype=x.dtype)
        yield u / _per_input(vector_norm(u.flatten(1), dim=1), x)


def forward_differences(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    value: Tensor,
    upstream: Tensor,
    directions: Iterable[Tensor],
    epsilon: float,
) -> Tensor:
    """d/m · Σ_i ((f(x + ε·u_i) − f(x)) · v / ε) · u_i, an estimate of Jᵀv for each input.

    Unbiased, but for O(ε), where the u_i are uniform on the unit sphere; exact for a linear f
    where they are an orthonormal basis (DFME, eq. 6; MAZE, eq. 8, with L for f and v = 1).

    Args:
        function: f, row by row: [B, *shape] to [B, C].
        x: [B, *shape].
        value: f(x) [B, C].
        upstream: v [B, C].
        directions: the u_i, m tensors shaped like x; each costs one call of f.
        epsilon: ε > 0.
    """
    total, count = torch.zeros_like(x), 0
    for u in directions:
        rate = ((function(x + epsilon * u) - value) * upstream).sum(dim=1) / epsilon
        total += _per_input(rate, x) * u
        count += 1
    return total * (x[0].numel() / count)


def _per_input(values: Tensor, x: Tensor) -> Tensor:
    """[B] to [B, 1, ...], which broadcasts over x."""
    return values.view(-1, *(1,) * (x.dim() - 1))


@contextmanager
def without_tf32() -> Iterator[None]:
    """A context without TF32, whose rounding exceeds a step of ε in a random direction."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
