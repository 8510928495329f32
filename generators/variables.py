"""The variables of a synthesis round: pixels, a generator and its latents, or a copy of one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.runtime import Runtime
from data.spec import InputSpec
from generators.networks import GeneratorNetwork
from models.initialization import reinitialize

Groups = list[dict[str, Any]]


class Variable(nn.Module):
    """Makes the inputs of a round from the parameters that the round's optimizer trains.

    After :meth:`begin`, :meth:`forward` returns the round's inputs as they are now. The module's
    own state lasts from round to round and is saved with the run; what belongs to one round alone
    (pixels, latents) is held in plain attributes.
    """

    @property
    def lasting(self) -> GeneratorNetwork | None:
        """The network that makes the inputs, if it is the same one in every round."""
        return None

    def begin(self, label: Tensor, index: int, noise: torch.Generator) -> Groups:
        """Start round ``index`` for the classes ``label`` [B]; returns the parameter groups."""
        raise NotImplementedError

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Images [B, *shape] in the value range, and the latents they are made from, if any."""
        raise NotImplementedError

    def after_backward(self) -> None:
        """Called when the gradients of one step are computed."""

    def after_step(self) -> None:
        """Called when the optimizer has made one step."""

    def end(self) -> None:
        """Called at the end of the round."""


class Pixels(Variable):
    """The images themselves (DeepInversion and ADI, CVPR 2020).

    As in the authors' code the variable is the normalised image, which starts as Gaussian noise
    and is clamped after each step to what the value range allows. What that makes
    of words and of columns that are one category is a matter of their modality.

    Args:
        spec: of the images.
    """

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec

    def begin(self, label: Tensor, index: int, noise: torch.Generator) -> Groups:
        shape = (len(label), *self.spec.shape)
        self.pixels = torch.randn(shape, generator=noise, device=label.device)
        self.limits = self.spec.kind.limits(self.pixels, self.spec)
        self.after_step()
        self.pixels.requires_grad_()
        return [{"params": [self.pixels]}]

    def forward(self) -> tuple[Tensor, Tensor | None]:
        return self.spec.kind.standard(self.pixels, self.spec), None

    @torch.no_grad()
    def after_step(self) -> None:
        if self.limits is not None:
            self.pixels.clamp_(*self.limits)


class Generated(Variable):
    """A generator and its latents, optimised together (CMI, IJCAI 2021).

    Each rank has a generator of its own here: with ``lifetime`` rounds between two fresh starts,
    ranks share nothing but the student.

    Args:
        generator: maps latents (and classes) to images.
        runtime: device and compilation.
        lr_latent: learning rate of the latents; None leaves them as they were drawn.
        lifetime: rounds after which the generator is initialised anew; 0 is never.
    """

    def __init__(
        self,
        generator: GeneratorNetwork,
        runtime: Runtime,
        lr_latent: float | None = 1e-3,
        lifetime: int = 1,
    ) -> None:
        super().__init__()
        self.generator = generator.train()
        runtime.compile(self.generator)
        self.lr_latent, self.lifetime = lr_latent, lifetime

    @property
    def lasting(self) -> GeneratorNetwork | None:
        return None if self.lifetime else self.generator

    def begin(self, label: Tensor, index: int, noise: torch.Generator) -> Groups:
        if self.lifetime and index % self.lifetime == 0:
            reinitialize(self.generator, noise)
        self.label = label
        self.latent = _drawn(self.generator, label, noise)
        return [{"params": list(self.generator.parameters())}, *_latents(self)]

    def forward(self) -> tuple[Tensor, Tensor | None]:
        latent = self.generator.latent(self.latent, self.label)
        return self.generator(self.latent, self.label), latent


class MetaGenerated(Variable):
    """A generator that learns to be a good start for the rounds (FastDFKD, AAAI 2022).

    A round adapts a copy θ' of the generator's weights θ together with fresh latents. Then θ takes
    one step along the sum of the gradients that θ' met on its way, as in the authors' code
    (first-order MAML, Finn et al., 2017). Ranks adapt copies of their own and average that step.

    Args:
        generator: θ.
        runtime: device, compilation and ranks.
        meta_optimizer: called with the generator's parameters, gives the optimizer of θ.
        lr_latent: learning rate of the latents; None leaves them as they were drawn.
        reset_layer: name of a layer of the generator that is initialised anew once, on all ranks
            alike; None is the first one that has weights, embeddings aside. The authors' code
            resets the BatchNorm behind it as well.
        reset_round: when.

    Raises:
        ValueError: for an unknown layer.
    """

    adapted: GeneratorNetwork

    def __init__(
        self,
        generator: GeneratorNetwork,
        runtime: Runtime,
        meta_optimizer: Callable[..., torch.optim.Optimizer],
        lr_latent: float | None = 1e-2,
        reset_layer: str | None = None,
        reset_round: int | None = None,
    ) -> None:
        super().__init__()
        layers = dict(generator.named_modules())
        if reset_layer is None:
            weighted = (n for n, m in layers.items() if hasattr(m, "reset_parameters"))
            reset_layer = next((n for n in weighted if not n.endswith("embedding")), "")
        if reset_layer not in layers:
            known = ", ".join(name for name, _ in generator.named_children())
            raise ValueError(f"the generator has no layer {reset_layer!r}; it has: {known}")
        self.generator: GeneratorNetwork = runtime.prepare(generator).train()  # type: ignore[assignment]
        self.lr_latent, self.runtime = lr_latent, runtime
        self.reset_layer, self.reset_round = reset_layer, reset_round
        self.meta_optimizer = meta_optimizer(self.generator.parameters())
        # not a child: it is a copy of the generator at the start of every round
        object.__setattr__(self, "adapted", runtime.compile(copy.deepcopy(self.generator)))

    def begin(self, label: Tensor, index: int, noise: torch.Generator) -> Groups:
        if index == self.reset_round:
            layer = dict(self.generator.named_modules())[self.reset_layer]
            reinitialize(layer, _alike(self.runtime, index))
        self.adapted.load_state_dict(self.generator.state_dict())
        self.meta_optimizer.zero_grad()
        self.label = label
        self.latent = _drawn(self.generator, label, noise)
        return [{"params": list(self.adapted.parameters())}, *_latents(self)]

    def forward(self) -> tuple[Tensor, Tensor | None]:
        latent = self.adapted.latent(self.latent, self.label)
        return self.adapted(self.latent, self.label), latent

    @torch.no_grad()
    def after_backward(self) -> None:
        pairs = zip(self.generator.parameters(), self.adapted.parameters(), strict=True)
        for kept, met in pairs:
            if met.grad is not None:
                kept.grad = met.grad.clone() if kept.grad is None else kept.grad + met.grad

    @torch.no_grad()
    def end(self) -> None:
        self.runtime.average_gradients(self.generator.parameters())
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad()

    def get_extra_state(self) -> dict[str, Any]:
        return {"meta_optimizer": self.meta_optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])


class NoisyLayer(Variable):
    """Class-name embeddings through a layer of noise that is drawn anew each round (NAYER, CVPR
    2024); the generator stays.

    A round of B images takes ceil(B / C) noisy layers, each a Linear whose weights, of standard
    normal draws, are the only noise there is: it turns the embeddings of C classes into the
    latents of C images. Embeddings pass a BatchNorm without parameters first. The generator is
    the same on every rank, noisy layers are not.

    Args:
        generator: unconditional; the latents know the class.
        embeddings: [C, D], a row per class.
        runtime: device, compilation and ranks.
        lifetime: rounds after which the generator is initialised anew; 0 is never.

    Raises:
        ValueError: for a generator that is conditional.
    """

    embeddings: Tensor

    def __init__(
        self, generator: GeneratorNetwork, embeddings: Tensor, runtime: Runtime, lifetime: int = 10
    ) -> None:
        super().__init__()
        if generator.conditional:
            raise ValueError(
                "a noisy layer makes latents that know the class: use generator.conditional=false"
            )
        self.generator = generator.train()
        runtime.compile(self.generator)
        spread = embeddings.std(0, correction=0, keepdim=True)
        normalized = (embeddings - embeddings.mean(0)) / (spread + 1e-5)
        self.register_buffer("embeddings", normalized, persistent=False)
        self.runtime, self.lifetime = runtime, lifetime

    @property
    def lasting(self) -> GeneratorNetwork | None:
        return None if self.lifetime else self.generator

    def begin(self, label: Tensor, index: int, noise: torch.Generator) -> Groups:
        if self.lifetime and index % self.lifetime == 0:
            reinitialize(self.generator, _alike(self.runtime, index))
        classes, size = self.embeddings.shape
        layers = math.ceil(len(label) / classes)
        shape = (layers, size + 1, self.generator.latent_size)
        drawn = torch.randn(shape, generator=noise, device=label.device)
        drawn[:, -1] = 0  # the bias, as in the authors' code
        self.weight = drawn.requires_grad_()
        self.label = label
        self.layer = torch.arange(len(label), device=label.device) // classes
        return [{"params": list(self.generator.parameters())}, {"params": [self.weight]}]

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """The latents of each layer for each class, [layers, C, latent_size], picked by row."""
        every = self.embeddings @ self.weight[:, :-1] + self.weight[:, -1:]
        latent = every[self.layer, self.label]
        return self.generator(latent), latent

    def after_backward(self) -> None:
        self.runtime.average_gradients(self.generator.parameters())


def one_hot(num_classes: int) -> Tensor:
    """[C, C]: class embeddings that mean nothing, the control of NAYER's text embeddings."""
    return torch.eye(num_classes)


def _alike(runtime: Runtime, index: int) -> torch.Generator:
    """Noise of round ``index`` that is the same on every rank."""
    return torch.Generator().manual_seed(runtime.seed * 1009 + index)


def _drawn(generator: GeneratorNetwork, label: Tensor, noise: torch.Generator) -> Tensor:
    shape = (len(label), generator.latent_size)
    return torch.randn(shape, generator=noise, device=label.device)


def _latents(variable: Generated | MetaGenerated) -> Groups:
    if variable.lr_latent is None:
        return []
    return [{"params": [variable.latent.requires_grad_()], "lr": variable.lr_latent}]
