"""Several teachers: assistants of intermediate size beside the run's own teacher."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.base import TransferLoss
from distillers.response import positive, soft_kl
from models.classifier import Classifier, Outputs
from models.meter import Meter
from models.pretrained import freeze, load_classifier


class DenselyGuided(TransferLoss):
    """Σ_k τ²·KL(softmax(g_k/τ) ‖ softmax(s/τ)) over the guides g_k that this step keeps: the
    teacher and all its assistants (DGKD, Son et al., ICCV 2021).

    At each step ``drop`` of them, drawn at random, are left out and not run; at least one stays. In
    a chain, every network is the student of one run: the first assistant's run has no guides here,
    the second's has the first, the student's has them all. Without guides, and with each student
    the ``teacher.checkpoint`` of the next run, the chain is TAKD (Mirzadeh et al., AAAI 2020).

    The authors' code divides each KL by the number of classes too; here it is the batch's mean.

    Args:
        guides: assistants, each ``{model: NODE, checkpoint: PATH}``, where PATH may be another
            run's ``student.safetensors``.
        spec: of the inputs that all are given; each guide normalises them in its own way.
        classes: in label order.
        runtime: where they run, and the randomness of dropping.
        temperature: τ > 0.
        drop: how many guides, the teacher among them, each step leaves out; the authors' 1.

    Attributes:
        guides: frozen, and neither part of the state nor of the parameters.
        meter: how many inputs the assistants have answered.

    Raises:
        ValueError: for a guide that is not as above, or does not fit the data.
    """

    def __init__(
        self,
        spec: InputSpec,
        classes: tuple[str, ...],
        runtime: Runtime,
        guides: Sequence[Mapping[str, Any]] = (),
        temperature: float = 5.0,
        drop: int = 1,
    ) -> None:
        super().__init__()
        if drop < 0:
            raise ValueError(f"drop is a number of guides, at least 0, but is {drop}")
        self.meter = Meter()
        loaded = [_load(guide, spec, classes, runtime) for guide in guides]
        self.guides = tuple(guide.metered(self.meter) for guide in loaded)
        for guide in self.guides:
            runtime.compile(guide.module)
        self.temperature, self.runtime = positive(temperature), runtime
        self.kept = 1 + len(self.guides) - min(drop, len(self.guides))
        self.steps = 0

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        losses = [
            soft_kl(student.logits, self._ask(k, teacher, batch), self.temperature)
            for k in self._draw()
        ]
        return torch.stack(losses).sum()

    def _draw(self) -> list[int]:
        """The guides of this step; 0 is the teacher. Drawn on the host, without waiting."""
        seed = self.runtime.noise("guides", self.steps).initial_seed()
        self.steps += 1
        return sorted(random.Random(seed).sample(range(1 + len(self.guides)), self.kept))

    @torch.no_grad()
    def _ask(self, k: int, teacher: Outputs, batch: Batch) -> Tensor:
        if k == 0:
            return teacher.logits
        with self.runtime.autocast():
            outputs: Outputs = self.guides[k - 1](batch.input)
        return outputs.logits

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def _load(
    guide: Mapping[str, Any], spec: InputSpec, classes: tuple[str, ...], runtime: Runtime
) -> Classifier:
    if set(guide) != {"model", "checkpoint"}:
        raise ValueError(
            "a guide is {model: NODE, checkpoint: PATH}, such as {model: {_target_: "
            f"models.resnet.ResNet, ...}}, checkpoint: RUN/student.safetensors}}, not {dict(guide)}"
        )
    network = load_classifier(guide["model"], guide["checkpoint"], spec, classes=classes)
    if network.spec.range != spec.range:
        raise ValueError(
            f"the guide {guide['checkpoint']} takes values in {network.spec.range}, but the "
            f"teacher in {spec.range}: choose guides that were trained as the teacher was"
        )
    runtime.prepare(freeze(network))
    return network
