"""Views that attack a network: inputs near the batch's on which it does worse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from data.modality import require_amounts
from data.spec import InputSpec
from distillers.step import INPUT, Roles, Step, View
from models.classifier import Classifier

Norm = Literal["inf", "2"]
Start = Literal["uniform", "normal", "none"]
SPREAD = 0.001  # std of the start "normal", as a share of the value range


def pgd(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    spec: InputSpec,
    epsilon: float,
    step_size: float,
    steps: int,
    norm: Norm,
    start: Start,
    noise: torch.Generator | None,
) -> Tensor:
    """Projected gradient ascent on a loss (Madry et al., ICLR 2018, section 2.1).

    x' ← Π(x' + step_size·d), where d is the sign of the gradient for "inf", and the gradient over
    its norm, input by input, for "2". Π projects first onto the ball of radius ε around x, then
    onto the value range: since x lies in the range, the result lies in both.

    Args:
        loss: of inputs [B, *spec.shape]; a scalar. Only the gradient's direction counts.
        x: [B, *spec.shape] in ``spec.range``.
        spec: says the range.
        epsilon: ε, as a share of the range.
        step_size: likewise.
        steps: how often the gradient is taken.
        norm: of the ball.
        start: "uniform" in the ball, "normal" for x + 0.001·N(0, 1), "none" for x itself.
        noise: for a random start; on the device of ``x``.

    Returns:
        [B, *spec.shape], without gradient.
    """
    low, high = spec.range
    radius, length = epsilon * (high - low), step_size * (high - low)
    x = x.detach()
    moved = _project(_start(x, radius, high - low, norm, start, noise), radius, norm)
    attacked = (x + moved).clamp(low, high)
    for _ in range(steps):
        attacked.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(attacked), attacked)
        direction = gradient.sign() if norm == "inf" else gradient / _lengths(gradient)
        moved = attacked.detach() + length * direction - x
        attacked = (x + _project(moved, radius, norm)).clamp(low, high)
    return attacked


class PGD(View):
    """Inputs moved within a ball around the batch's so that a network does worse: :func:`pgd`.

    The network is seen through a frozen view, so an attack changes neither its mode nor its
    BatchNorm statistics, and leaves no gradient with its parameters.

    Args:
        spec: of the inputs.
        epsilon: radius of the ball, as a share of the value range: 8/255 is 0.0314.
        step_size: likewise; 2.5·ε/iterations by default (Madry et al.'s code for CIFAR-10 and
            ImageNet takes as much, so that any point of the ball can be reached).
        iterations: how often the gradient is taken.
        norm: of the ball, "inf" or "2".
        start: "uniform" in the ball (Madry et al.), "normal" for x + 0.001·N(0, 1) (TRADES,
            RSLAD), or "none".
        maximise: "ce" is the cross-entropy of its answer with the label (Madry et al.; ARD), "kl"
            KL(t(x) ‖ s(x')) with the target's answer to the clean input (RSLAD; TRADES where
            the target is the network itself), "kl_both" KL(t(x') ‖ s(x')) with a gradient through
            both (AdaAD).
        of: the network that is attacked.
        target: t, which "ce" does not read.
        mode: "eval", or "train" where BatchNorm layers normalise by the batch, as they do while the
            network learns. Dropout stays off in either, unlike in the authors' code: all steps then
            climb one function. A teacher is always in eval mode.

    Raises:
        ValueError: for sizes that are not above 0, an ε that is no share of the range, and inputs
            between whose values there is nothing, such as words.
    """

    def __init__(
        self,
        spec: InputSpec,
        epsilon: float,
        step_size: float | None = None,
        iterations: int = 10,
        norm: Norm = "inf",
        start: Start = "uniform",
        maximise: Literal["ce", "kl", "kl_both"] = "ce",
        of: str = "student",
        target: str = "teacher",
        mode: Literal["eval", "train"] = "eval",
    ) -> None:
        super().__init__()
        require_amounts(spec, "distillers.attacks.PGD", "leave the view out, or put another there")
        if iterations < 1 or epsilon <= 0 or (step_size is not None and step_size <= 0):
            raise ValueError("epsilon and step_size must be above 0, and iterations at least 1")
        if norm == "inf" and epsilon > 1:
            raise ValueError(
                f"epsilon={epsilon:g} is a share of the value range, at most 1: "
                "write 8/255 as 0.0314"
            )
        self.spec, self.epsilon, self.iterations = spec, epsilon, iterations
        self.step_size = 2.5 * epsilon / iterations if step_size is None else step_size
        self.norm, self.start, self.mode = norm, start, mode
        self.maximise, self.attacked, self.target = maximise, of, target
        self.of = (of,) if maximise == "ce" else tuple(dict.fromkeys((of, target)))
        self.needs_label = maximise == "ce"
        self.seen: dict[str, Classifier] = {}  # of students; a dict, as they are no parts of it

    def forward(self, step: Step) -> Tensor:
        name = next((name for name, view in step.roles.views.items() if view is self), "")
        noise = None if self.start == "none" else step.noise(f"attack {name}")
        return pgd(
            self._loss(step),
            step.view(INPUT),
            self.spec,
            self.epsilon,
            self.step_size,
            self.iterations,
            self.norm,
            self.start,
            noise,
        )

    def _loss(self, step: Step) -> Callable[[Tensor], Tensor]:
        """What is maximised, as a function of the inputs."""
        answer = self._answering(step.roles, self.attacked)
        if self.maximise == "ce":
            label = step.batch.label
            assert label is not None
            return lambda x: F.cross_entropy(answer(x), label, reduction="sum")
        if self.maximise == "kl_both":
            target = self._answering(step.roles, self.target)
            return lambda x: _kl(target(x), answer(x))
        with torch.no_grad():
            own = self.target == self.attacked  # which answers in the mode of the attack
            clean = answer(step.view(INPUT)) if own else step.answer(self.target).logits.detach()
        return lambda x: _kl(clean, answer(x))

    def _answering(self, roles: Roles, name: str) -> Callable[[Tensor], Tensor]:
        """The logits of a network as a function of its inputs."""
        network = self._network(roles, name)

        def answer(x: Tensor) -> Tensor:
            with roles.runtime.autocast():
                return network(x).logits  # type: ignore[no-any-return]

        return answer

    def _network(self, roles: Roles, name: str) -> Classifier:
        """A network whose parameters take no gradient."""
        if name in roles.frozen:
            return roles.frozen[name]
        if name not in roles.students:
            raise ValueError(f"an attack needs the gradient of {name}: name a network, not a part")
        if name not in self.seen:
            view = roles.students[name].frozen(by_batch=self.mode == "train")
            roles.runtime.compile(view.module)
            self.seen[name] = view
        return self.seen[name]


def _kl(target: Tensor, answer: Tensor) -> Tensor:
    """KL(softmax(target) ‖ softmax(answer)) of logits [B, C], summed."""
    logs = F.log_softmax(answer, dim=1), F.log_softmax(target, dim=1)
    return F.kl_div(*logs, reduction="sum", log_target=True)


def _start(
    x: Tensor, radius: float, width: float, norm: Norm, start: Start, noise: torch.Generator | None
) -> Tensor:
    """The first move, before it is projected."""
    if start == "none":
        return torch.zeros_like(x)
    drawn = torch.empty_like(x)
    if start == "normal":
        return SPREAD * width * drawn.normal_(generator=noise)
    if norm == "inf":
        return drawn.uniform_(-radius, radius, generator=noise)
    direction = drawn.normal_(generator=noise)
    share = torch.empty_like(_lengths(x)).uniform_(generator=noise)  # of the ball's volume
    return radius * share ** (1 / x[0].numel()) * direction / _lengths(direction)


def _project(moved: Tensor, radius: float, norm: Norm) -> Tensor:
    if norm == "inf":
        return moved.clamp(-radius, radius)
    return moved * (radius / _lengths(moved)).clamp_max(1)


def _lengths(x: Tensor) -> Tensor:
    """The 2-norm of each input, [B, 1, ...]; never 0."""
    tiny = torch.finfo(x.dtype).tiny
    return vector_norm(x, dim=list(range(1, x.dim())), keepdim=True).clamp_min(tiny)
