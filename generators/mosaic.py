"""New images from local patterns of another domain's images (MosaicKD, NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.runtime import Runtime
from core.schedules import Factor, Schedule, constant
from data.dataset import DataFreeError, Dataset
from data.modality import require
from data.spec import Batch, InputSpec
from generators.base import Synthesis, SynthesisLoss
from generators.streams import Stream


class OutOfDomain:
    """Training images of a data set other than the teacher's own, drawn at random.

    Args:
        dataset: their data set, in the shape that the teacher takes.
        data: the teacher's own data set, which must be another.
        spec: what the teacher takes; values come in its range.

    Attributes:
        read: how many images were drawn, on this rank.

    Raises:
        DataFreeError: if the two data sets are the same.
        ValueError: for images of another shape.
    """

    def __init__(self, dataset: Dataset, data: Dataset, spec: InputSpec) -> None:
        if dataset.name == data.name:
            raise DataFreeError(
                f"out-of-domain images may not come from {data.name}, the teacher's own data: "
                "name another data set"
            )
        if dataset.shape != tuple(spec.shape):
            raise ValueError(
                f"the teacher takes inputs of shape {list(spec.shape)}, but the out-of-domain "
                f"data set {dataset.name} has {list(dataset.shape)}: set its size, or name another"
            )
        dataset.range = spec.range
        self.split = dataset.open("train")
        self.read = 0

    def draw(self, size: int, noise: torch.Generator) -> Tensor:
        """Images [size, *shape], with replacement."""
        row = torch.randint(len(self.split), (size,), generator=noise, device=noise.device)
        self.read += size
        return self.split.batch(row)[0]


class OutOfDomainInputs(Stream):
    """Out-of-domain images in each of the student's batches, as in MosaicKD's code.

    The student learns the teacher's answers on them too; no label is known.

    Args:
        domain: what they are drawn from.
        fraction: of each batch, in (0, 1); the authors take one half.
    """

    def __init__(self, domain: OutOfDomain, fraction: float = 0.5) -> None:
        super().__init__(fraction)
        self.domain = domain

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        return Batch(self.domain.draw(size, noise))

    def counts(self) -> dict[str, int]:
        return {"out_of_domain_inputs_read": self.domain.read}

    def state_dict(self) -> dict[str, Any]:
        return {"read": self.domain.read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.domain.read = state["read"]


class PatchDiscrimination(SynthesisLoss):
    """−log σ(D(x)), mean over patches and batch (L_local of MosaicKD, NeurIPS 2021, eq. 3).

    The discriminator D tells each patch of a synthesized image from those of out-of-domain ones, so
    that synthesized images look real locally. It minimises the mean of −log σ(D(u)) over
    out-of-domain images u and of −log(1 − σ(D(x))), half of each, once the generator has made its
    step and on the same images; the authors' D goes first. It belongs to this loss, with an
    optimizer of its own, and takes no gradient from the generator's objective. Its patches overlap,
    and its BatchNorm uses each batch's own statistics, as theirs does. The authors sum over
    patches: a weight of 64 here is their 1 on 32×32 images.

    Args:
        domain: of the images u.
        spec: of the images, [C, H, W].
        runtime: device, noise and ranks.
        optimizer: called with D's parameters, gives their optimizer.
        width: channels of D's first convolution.
        halvings: convolutions with stride 2 in D: one sees patches of 4×4, two of 10×10.
        schedule: factor on the optimizer's learning rate, from the share of the run done.

    Raises:
        ValueError: for images too small to be halved so often.
    """

    def __init__(
        self,
        domain: OutOfDomain,
        spec: InputSpec,
        runtime: Runtime,
        optimizer: Callable[..., torch.optim.Optimizer],
        width: int = 128,
        halvings: int = 2,
        schedule: Factor | None = None,
    ) -> None:
        super().__init__()
        require(spec, ("image",), "a patch discriminator", "choose another method")
        if halvings < 1 or min(spec.shape[1:]) >> halvings < 1:
            raise ValueError(
                f"a patch discriminator with halvings={halvings} does not fit inputs of shape "
                f"{list(spec.shape)}: larger images, or fewer halvings, at least 1"
            )
        self.domain, self.spec, self.runtime = domain, spec, runtime
        network = patch_discriminator(spec.shape[0], width, halvings)
        self.discriminator = runtime.prepare(network).requires_grad_(False)
        self.optimizer = optimizer(self.discriminator.parameters())
        self.schedule = Schedule(self.optimizer, schedule or constant())
        self.updates = 0

    @property
    def out_of_domain_inputs_read(self) -> int:
        return self.domain.read

    def at(self, progress: float) -> None:
        """Set D's learning rate."""
        self.schedule.apply(progress)

    def forward(self, synthesis: Synthesis) -> Tensor:
        return F.softplus(-self._judge(synthesis.images)).mean()

    def commit(self, synthesis: Synthesis) -> None:
        """One step of D."""
        noise = self.runtime.noise("out of domain", self.updates)
        real = self.domain.draw(len(synthesis.images), noise)
        parameters = list(self.discriminator.requires_grad_(True).parameters())
        with torch.enable_grad():
            natural = F.softplus(-self._judge(real)).mean()
            made = F.softplus(self._judge(synthesis.images.detach())).mean()
            ((natural + made) / 2).backward()
        self.discriminator.requires_grad_(False)
        self.runtime.average_gradients(parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1

    def get_extra_state(self) -> dict[str, Any]:
        optimizer = self.optimizer.state_dict()
        return {"optimizer": optimizer, "updates": self.updates, "read": self.domain.read}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.domain.read = state["updates"], state["read"]

    def _judge(self, images: Tensor) -> Tensor:
        return self.discriminator(self.spec.normalize(images))  # type: ignore[no-any-return]


class Entropy(SynthesisLoss):
    """−Σ_c p_c log p_c of the teacher's p, batch mean (L_align of MosaicKD, NeurIPS 2021, eq. 4).

    0 if the teacher is sure of every input, whatever class it predicts.
    """

    def forward(self, synthesis: Synthesis) -> Tensor:
        log_p = F.log_softmax(synthesis.teacher.logits, dim=1)
        return -(log_p.exp() * log_p).sum(dim=1).mean()


def patch_discriminator(channels: int, width: int, halvings: int) -> nn.Sequential:
    """Images [B, C, H, W] to a logit for each patch, [B, 1, H / 2^halvings, W / 2^halvings]."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for _ in range(halvings - 1):
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(2 * width, track_running_stats=False), nn.LeakyReLU(0.2)]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 1, bias=False))
