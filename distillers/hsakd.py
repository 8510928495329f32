"""Self-supervised distillation: every stage predicts class and rotation together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.runtime import Runtime
from data.modality import require
from data.spec import Batch, InputSpec
from distillers.base import STAGES, Side, Taps, TransferLoss
from distillers.response import positive, soft_kl
from models.classifier import Classifier, Outputs
from models.features import channels, to_map
from models.initialization import initialize

TURNS = 4  # by 0°, 90°, 180° and 270°


class HSAKD(TransferLoss):
    """Σ_taps τ²·KL(q_t ‖ q_s) + τ²·KL(p_t ‖ p_s), over inputs turned by 0°, 90°, 180° and 270°.

    Hierarchical Self-supervised Augmented KD (Yang et al., IJCAI 2021). p are the networks' own
    answers, and q [4B, 4C] those of auxiliary classifiers on each tap, which predict class and turn
    together: class c turned k times is 4c + k. Use it with the cross-entropy of the unturned inputs
    (``loss=[hsakd,ce]``), and without further KD.

    The loss itself shows the three turned copies to both networks, for any source. The teacher's
    classifiers learn the joint labels on its frozen features, the cheaper of the authors' two ways,
    but within the run: alone for the first part of it, then beside the student. Each classifier has
    a 3×3 convolution with BatchNorm for each stage still to come, halving the size, and one more on
    the last; the authors repeat the network's own blocks.

    Args:
        num_classes: C.
        spec: of the inputs: images whose sides agree.
        runtime: gives the autocast around the networks.
        taps: maps [B, C, H, W] or tokens, in the order of the network.
        temperature: τ > 0.
        pretraining: fraction of the run in which only the teacher's classifiers learn, in [0, 1).

    Raises:
        ValueError: for an argument out of range, or images that are not square.
    """

    needs_label = asks_networks = True

    def __init__(
        self,
        num_classes: int,
        spec: InputSpec,
        runtime: Runtime,
        taps: Taps = STAGES,
        temperature: float = 3.0,
        pretraining: float = 0.125,
    ) -> None:
        super().__init__(taps)
        require(spec, ("image",), "HSAKD", "choose another loss")
        height, width = spec.shape[1:]
        if height != width:
            raise ValueError(
                f"HSAKD turns images by 90°, so they must be square, but are {height}x{width}: "
                "set data.size"
            )
        if not 0 <= pretraining < 1:
            raise ValueError(f"pretraining is a fraction in [0, 1), but is {pretraining}")
        self.num_classes, self.runtime = num_classes, runtime
        self.temperature, self.pretraining = positive(temperature), pretraining
        self.transfers = True
        self.classifiers = nn.ModuleDict()

    def prepare(self, student: Side, teacher: Side) -> None:
        assert student.network is not None
        assert teacher.network is not None
        self.networks = (student.network, teacher.network)  # a tuple: no part of the loss's state
        pairs = self.pairs(student.outputs, teacher.outputs)
        for name, maps in zip(("student", "teacher"), zip(*pairs, strict=True), strict=True):
            widths = [channels(to_map(x)) for x in maps]
            self.classifiers[name] = nn.ModuleList(
                auxiliary_classifier(c, widths[-1], len(widths) - 1 - i, TURNS * self.num_classes)
                for i, c in enumerate(widths)
            )

    def at(self, progress: float) -> None:
        """Whether the student learns yet, from the run's progress in [0, 1]."""
        self.transfers = progress >= self.pretraining

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert batch.label is not None
        ours, theirs = self.networks
        pairs = [(student, self._ask(ours, batch.input))]
        with torch.no_grad():
            pairs.append((teacher, self._ask(theirs, batch.input)))
        p_s, p_t = (torch.cat([a.logits, b.logits]) for a, b in pairs)
        q_s = self._tell("student", self.student_taps, *pairs[0])
        q_t = self._tell("teacher", self.teacher_taps, *pairs[1])
        joint = torch.cat([TURNS * batch.label + k for k in range(TURNS)])
        transfer = soft_kl(p_s, p_t, self.temperature)
        learning = torch.zeros_like(transfer)
        for s, t in zip(q_s, q_t, strict=True):
            transfer = transfer + soft_kl(s, t.detach(), self.temperature)
            learning = learning + F.cross_entropy(t, joint)
        # times 0 rather than left out: DDP waits for the student's gradients
        return transfer * float(self.transfers) + learning

    def _ask(self, network: Classifier, x: Tensor) -> Outputs:
        """A network's outputs for each input turned once, twice and three times, [3B, ...]."""
        turned = torch.cat([x.rot90(k, (-2, -1)) for k in range(1, TURNS)])
        with self.runtime.autocast():
            outputs: Outputs = network(turned)
        return outputs

    def _tell(
        self, name: str, taps: tuple[str, ...], straight: Outputs, turned: Outputs
    ) -> list[Tensor]:
        """The logits [4B, 4C] of one network's auxiliary classifiers."""
        both = zip(self.classifiers[name], taps, strict=True)  # type: ignore[call-overload]
        return [
            classify(to_map(torch.cat([straight.features[tap], turned.features[tap]])))
            for classify, tap in both
        ]


def auxiliary_classifier(c_in: int, width: int, halvings: int, classes: int) -> nn.Sequential:
    """Maps [B, c_in, H, W] to logits [B, classes]."""
    layers: list[nn.Module] = []
    for stride in [2] * halvings or [1]:
        layers += [nn.Conv2d(c_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
        layers += [nn.ReLU()]
        c_in = width
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    classifier = nn.Sequential(*layers, *pool, nn.Linear(width, classes))
    initialize(classifier)
    return classifier
