"""Transfer losses on the places of an input that a network's answer depends on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import STAGES, Side, Taps, TransferLoss
from models.classifier import Classifier, Outputs
from models.features import channels, pool_to, to_map


class SpatialActivation(TransferLoss):
    """Σ_taps mean (M_s − M_t)² + mean (A_s − A_t)²: mSARC of SpaceshipNet (Yu et al., CVPR 2023).

    M [B, 1, H, W] = Σ_c α_c F_c is the Grad-CAM of the class that the teacher predicts, where α_c
    is the mean over places of that logit's gradient with respect to channel c. A [B, C, H, W] is
    the class-activation map of every class: the head's weights applied at each place of the last
    tap, if both heads read its channels; otherwise it is left out (LeNet has a layer between). As
    in the authors' code neither α nor the head's weights take a gradient, and nothing is rectified
    or masked. Of two maps that differ in size the larger is average-pooled to the smaller.

    The gradients come from a second pass of both networks in float32, the student's with batch
    statistics but without changing it. So the loss works with compiled and autocast networks, and
    the teacher is asked twice.

    Args:
        taps: maps [B, C, H, W] or tokens, in the order of the network.
    """

    asks_networks = True

    def __init__(self, taps: Taps = STAGES) -> None:
        super().__init__(taps)

    def prepare(self, student: Side, teacher: Side) -> None:
        assert student.network is not None
        assert teacher.network is not None
        view = student.network.frozen(self.student_taps)
        for layer in view.batchnorms():  # without running statistics it takes the batch's
            layer.running_mean = layer.running_var = None
        # tuples: no part of the loss's state
        self.views = (view, teacher.network.frozen(self.teacher_taps))
        last = map(to_map, self.pairs(student.outputs, teacher.outputs)[-1])
        both = zip((student.head, teacher.head), last, strict=True)
        heads = tuple(h for h, x in both if h is not None and h.in_features == channels(x))
        self.heads = heads if len(heads) == 2 else ()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        label = teacher.logits.argmax(dim=1)
        ours = importance(self.views[0], batch.input, label)
        theirs = importance(self.views[1], batch.input, label)
        pairs = [(to_map(s), to_map(t)) for s, t in self.pairs(student, teacher)]
        gaps = [
            _gap(grad_cam(s, ours[a]), grad_cam(t, theirs[b]))
            for (s, t), a, b in zip(pairs, self.student_taps, self.teacher_taps, strict=True)
        ]
        if self.heads:
            gaps.append(_gap(*map(class_maps, pairs[-1], self.heads)))
        return torch.stack(gaps).sum()


@torch.enable_grad()
def importance(view: Classifier, x: Tensor, label: Tensor) -> dict[str, Tensor]:
    """α [B, C] at each tap of a frozen view: mean over places of ∂ logit_label / ∂ feature."""
    outputs = view(x.detach().requires_grad_())
    chosen = outputs.logits.gather(1, label[:, None]).sum()
    gradients = torch.autograd.grad(chosen, list(outputs.features.values()))
    return {
        tap: to_map(gradient).mean(dim=(2, 3))
        for tap, gradient in zip(outputs.features, gradients, strict=True)
    }


def grad_cam(feature: Tensor, weight: Tensor) -> Tensor:
    """Σ_c α_c F_c [B, 1, H, W] of a map [B, C, H, W] and α [B, C]."""
    return (feature * weight[:, :, None, None]).sum(dim=1, keepdim=True)


def class_maps(feature: Tensor, head: nn.Linear) -> Tensor:
    """A linear head applied at each place of a map, [B, classes, H, W], without its bias."""
    return F.conv2d(feature, head.weight.detach()[:, :, None, None])


def _gap(student: Tensor, teacher: Tensor) -> Tensor:
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    size = (height, width)
    return F.mse_loss(pool_to(student, size), pool_to(teacher, size))
