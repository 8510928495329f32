"""Transfer losses on logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from data.spec import Batch
from distillers.base import TransferLoss
from models.classifier import Outputs


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """τ²·KL(softmax(t/τ) ‖ softmax(s/τ)), batch mean, of logits [B, C].

    Both sides stay in log space: log(softmax(x)) is infinite at a logit gap of 500.
    """
    log_s = F.log_softmax(student / temperature, dim=1)
    log_t = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


class CrossEntropy(TransferLoss):
    """Cross-entropy with ``batch.label``; batch mean.

    Args:
        label_smoothing: probability mass in [0, 1] spread evenly over all classes.
    """

    needs_teacher = False
    needs_label = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], but is {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert batch.label is not None
        return F.cross_entropy(student.logits, batch.label, label_smoothing=self.label_smoothing)


class KD(TransferLoss):
    """τ²·KL(softmax(t/τ) ‖ softmax(s/τ)), batch mean (Hinton, Vinyals and Dean 2015, section 2).

    ``temperature=1`` is the forward KL that ZSKT's student minimises.

    Args:
        temperature: τ > 0; the factor τ² keeps the gradient's size the same at any τ.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = positive(temperature)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return soft_kl(student.logits, teacher.logits, self.temperature)


class PredictedLabel(TransferLoss):
    """Cross-entropy with the class that the teacher predicts, argmax t; batch mean.

    Thoker and Gall (ICIP 2019) find it better than KL across modalities; as hard-label
    distillation it is that of DeiT (Touvron et al., ICML 2021, section 4).
    """

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return F.cross_entropy(student.logits, teacher.logits.argmax(dim=1))


class SoftTargetCE(TransferLoss):
    """−Σ_c y~_c log softmax(s)_c with y~ = (1 − a)·onehot + a·softmax(t), batch mean.

    PS-KD (Kim et al., ICCV 2021), where t is what the student itself predicted
    an epoch earlier (``distillers.memory.Memory``). The share a rises linearly from 0 to ``alpha``
    over the run. The paper's rises once an epoch, a = alpha·(e + 1)/E in epoch e of E from 0; here
    it rises at every step, a = alpha·progress, which :meth:`at` sets.

    Args:
        alpha: the share at the end, in [0, 1].
    """

    needs_label = True

    def __init__(self, alpha: float = 0.8) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], but is {alpha}")
        self.alpha, self.share = alpha, 0.0

    def at(self, progress: float) -> None:
        """Set the share for the step that starts at ``progress``, in [0, 1]."""
        self.share = self.alpha * progress

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert batch.label is not None
        hard = F.cross_entropy(student.logits, batch.label)
        soft = F.cross_entropy(student.logits, F.softmax(teacher.logits, dim=1))
        return (1 - self.share) * hard + self.share * soft


class StandardizedKD(TransferLoss):
    """KD on z-scored logits, z = (x − mean) / (std + 1e-7) per input (Sun et al., CVPR 2024).

    The student need not match the teacher's scale or shift, only the shape of its logits.

    Args:
        temperature: τ > 0 of the KD on the z-scores.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = positive(temperature)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return soft_kl(_zscore(student.logits), _zscore(teacher.logits), self.temperature)


class LogitL1(TransferLoss):
    """mean |s − t| over batch and classes (DFAD, Fang et al. 2019)."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return F.l1_loss(student.logits, teacher.logits)


class DKD(TransferLoss):
    """τ²·(α·TCKD + β·NCKD), batch mean (Zhao et al., CVPR 2022).

    TCKD is the KL between the two-way distributions (label, any other class), NCKD the KL between
    the distributions over the other classes alone. ``alpha=1`` with β weighted by the teacher's
    1 − p_label would be KD again. A large β needs the warm-up of its weight that ``loss=dkd`` has:
    the paper's 20 of 240 epochs.

    Args:
        alpha: weight of the label's class.
        beta: weight of the others; the paper takes 2 to 8 by pair.
        temperature: τ > 0.
    """

    needs_label = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature = alpha, beta, positive(temperature)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert batch.label is not None
        target_s, others_s = _decouple(student.logits / self.temperature, batch.label)
        target_t, others_t = _decouple(teacher.logits / self.temperature, batch.label)
        kl = {"reduction": "batchmean", "log_target": True}
        target = F.kl_div(target_s, target_t, **kl)  # type: ignore[arg-type]
        others = F.kl_div(others_s, others_t, **kl)  # type: ignore[arg-type]
        return self.temperature**2 * (self.alpha * target + self.beta * others)


class DIST(TransferLoss):
    """τ²·(β·inter + γ·intra) of 1 − Pearson's correlation (Huang et al., NeurIPS 2022).

    ``inter`` correlates student and teacher probabilities across the classes of one input,
    ``intra`` across the batch for one class; a constant row has correlation 0.

    Args:
        beta: weight of ``inter``.
        gamma: weight of ``intra``.
        temperature: τ > 0; the paper has 1 for ImageNet and 4 for CIFAR-100.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.beta, self.gamma, self.temperature = beta, gamma, positive(temperature)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        s = F.softmax(student.logits / self.temperature, dim=1)
        t = F.softmax(teacher.logits / self.temperature, dim=1)
        inter, intra = 1 - _pearson(s, t), 1 - _pearson(s.T, t.T)
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)


def positive(temperature: float) -> float:
    """The temperature.

    Raises:
        ValueError: if it is 0 or less.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, but is {temperature}")
    return float(temperature)


def _zscore(x: Tensor) -> Tensor:
    return (x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + 1e-7)


def _decouple(x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (label, any other) [B, 2] and among the others alone [B, C−1]."""
    column = torch.arange(x.shape[1] - 1, device=x.device)
    others = x.gather(1, column + (column >= label[:, None]))  # skips each row's label
    pair = torch.cat([x.gather(1, label[:, None]), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(pair, dim=1), F.log_softmax(others, dim=1)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the rows of the correlation between a's and b's entries."""
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (a, b))
    norms = vector_norm(a, dim=1) * vector_norm(b, dim=1)
    return ((a * b).sum(dim=1) / (norms + 1e-8)).mean()
