"""Replay of earlier images, so that the student does not forget what came before."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.runtime import Runtime
from data.modality import require
from data.spec import Batch, InputSpec
from generators.base import Drawing, Made, Synthesizer, Workload
from generators.networks import GeneratorNetwork, draw_latent
from generators.streams import Place, Stream
from models.classifier import Classifier, full_precision
from models.ema import EMA


class EMAGenerator(Stream):
    """A generator whose weights are the average of all earlier ones (MAD, NeurIPS 2022).

    θ̃ ← decay·θ̃ + (1 − decay)·θ once per update of the synthesizer, from θ̃ = θ. It moves less than
    the generator does, and its images are old ones without any being stored. Its BatchNorm uses the
    batch's own statistics, as the generator's does.

    Args:
        num_classes: classes are drawn uniformly from so many, if the generator takes any.
        runtime: precision and compilation.
        decay: in [0, 1); the paper's best is 0.95.
        fraction: of each batch; one half weighs both generators alike, as in the paper.
    """

    synthesizes = True
    ema: EMA[GeneratorNetwork]

    def __init__(
        self, num_classes: int, runtime: Runtime, decay: float = 0.95, fraction: float = 0.5
    ) -> None:
        super().__init__(fraction)
        self.num_classes, self.runtime, self.decay = num_classes, runtime, decay

    def start(self, synthesizer: Synthesizer, place: Place) -> None:
        if not isinstance(synthesizer, Drawing) or synthesizer.generator is None:
            raise ValueError(
                f"{type(synthesizer).__name__} has no generator that draws inputs, of which an "
                "average could: use generators.trained.TrainedGenerator, or a bank in its place"
            )
        self.ema = EMA(synthesizer.generator, self.decay, rising=False)
        self.runtime.compile(self.ema.module.train())

    def learn(self, made: Made) -> None:
        self.ema.update()

    @torch.no_grad()
    def draw(self, size: int, noise: torch.Generator) -> Batch:
        generator = self.ema.module
        z, label = draw_latent(
            generator, size, self.num_classes if generator.conditional else None, noise
        )
        with self.runtime.autocast():
            return Batch(generator(z, label), label)

    def state_dict(self) -> dict[str, Any]:
        return self.ema.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state)


class VAE(Stream):
    """A variational autoencoder that remembers the images of the past (PRE-DFKD, AAAI 2022).

    Minimises ‖x̂ − x‖₁ + ‖t(x̂) − t(x)‖₁ + kl_weight·KL(q(z|x) ‖ N(0, I)), means over inputs (as
    the teacher sees them) and over the teacher's logits t. Its own images are among what it
    learns from, in the batch's proportion, so that it does not forget either; the others are those
    ahead of its own in the first batch after an update. The authors also
    move the replayed z by one step towards images that the teacher is sure of; this is left out.

    Args:
        decoder: z to images; a generator of its own, and best of the synthesizer's kind. If it is
            conditional, the teacher's predictions are the classes.
        teacher: whose logits are to be kept; frozen.
        spec: of the images, [C, H, W] with H and W divisible by 4.
        num_classes: of a conditional decoder.
        runtime: device, precision and ranks.
        optimizer: called with all parameters, gives their optimizer.
        channels: of the encoder's second convolution; its first has half of them.
        kl_weight: of the prior.
        updates: steps of the optimizer at a time.
        fraction: of each batch; the authors add 1/8 to it, which makes 1/9.
    """

    synthesizes = True

    def __init__(
        self,
        decoder: GeneratorNetwork,
        teacher: Classifier,
        spec: InputSpec,
        num_classes: int,
        runtime: Runtime,
        optimizer: Callable[..., torch.optim.Optimizer],
        channels: int = 64,
        kl_weight: float = 1e-5,
        updates: int = 1,
        fraction: float = 1 / 9,
    ) -> None:
        super().__init__(fraction)
        self.follows = True
        require(spec, ("image",), "the VAE's encoder", "choose another method")
        self.encoder = runtime.prepare(Encoder(spec, decoder.latent_size, channels)).train()
        self.decoder: GeneratorNetwork = runtime.prepare(decoder).train()  # type: ignore[assignment]
        self.teacher = teacher.frozen()
        for module in (self.encoder, self.decoder, self.teacher.module):
            runtime.compile(module)
        self.parameters = list(chain(self.encoder.parameters(), self.decoder.parameters()))
        self.optimizer = optimizer(self.parameters)
        self.num_classes = num_classes if decoder.conditional else None
        self.spec, self.runtime = spec, runtime
        self.kl_weight, self.updates = kl_weight, updates

    def start(self, synthesizer: Synthesizer, place: Place) -> None:
        self.place = place

    def follow(self, ahead: Tensor, noise: torch.Generator) -> None:
        for _ in range(self.updates):
            earlier = self.draw(self._own(len(ahead)), noise).input
            self._update(torch.cat([ahead, earlier]), noise)

    def plan(self, batches: int) -> Workload:
        seen = self.updates * (self.place.ahead + self._own(self.place.ahead))
        return Workload(answers=seen, gradients=seen).times(-(-batches // self.place.period))

    @torch.no_grad()
    def draw(self, size: int, noise: torch.Generator) -> Batch:
        z, label = draw_latent(self.decoder, size, self.num_classes, noise)
        with self.runtime.autocast():
            return Batch(self.decoder(z, label), label)

    def state_dict(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder.state_dict(),
            "decoder": self.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("encoder", "decoder", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.losses = {k: v.to(self.runtime.device) for k, v in state["losses"].items()}

    def _own(self, images: int) -> int:
        assert self.fraction is not None
        return max(1, round(self.fraction * images))

    def _update(self, images: Tensor, noise: torch.Generator) -> None:
        with self.runtime.autocast():
            with torch.no_grad():
                target = self.teacher(images).logits
            mean, log_variance = self.encoder(images)
            eps = torch.randn(mean.shape, generator=noise, device=mean.device)
            label = None if self.num_classes is None else target.argmax(1)
            rebuilt = self.decoder(mean + (0.5 * log_variance).exp() * eps, label)
            logits = self.teacher(rebuilt).logits
        pixels = F.l1_loss(self.spec.normalize(rebuilt), self.spec.normalize(images))
        prior = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        loss = pixels + F.l1_loss(logits, target) + self.kl_weight * prior
        loss.backward()
        self.runtime.average_gradients(self.parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses = {"replay": loss.detach()}


class Encoder(nn.Module):
    """Images [B, *shape] in the range to the mean and log-variance [B, latent_size] of q(z|x)."""

    def __init__(self, spec: InputSpec, latent_size: int, channels: int) -> None:
        super().__init__()
        self.spec = spec
        image_channels, height, width = spec.shape
        self.stages = nn.Sequential(
            *_halving(image_channels, channels // 2), *_halving(channels // 2, channels)
        )
        self.head = nn.Linear(channels * (height // 4) * (width // 4), 2 * latent_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.head(self.stages(self.spec.normalize(x)).flatten(1))
        mean, log_variance = full_precision(x).chunk(2, dim=1)
        return mean, log_variance


def _halving(channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2, inplace=True)]
