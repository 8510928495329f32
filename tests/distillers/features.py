"""Features without networks, and the losses of three files on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from data.spec import Batch
from distillers.base import Side, TransferLoss
from models.classifier import Outputs

Loss = TypeVar("Loss", bound=TransferLoss)
TAPS = ("a", "b", "c")


def outputs(*features: Tensor) -> Outputs:
    """Of a network with the taps a, b, c, as many as there are features."""
    return Outputs(features[0].flatten(1), dict(zip(TAPS, features, strict=False)))


def random(seed: int, *shapes: Sequence[int], dtype: torch.dtype = torch.float64) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    return outputs(*(torch.randn(*s, generator=generator, dtype=dtype) for s in shapes))


def apply(loss: TransferLoss, student: Outputs, teacher: Outputs) -> Tensor:
    x = student.logits
    value: Tensor = loss(student, teacher, Batch(x))
    return value


def prepared(loss: Loss, student: Outputs, teacher: Outputs, seed: int = 0) -> Loss:
    """The loss with its parameters, in the features' precision and in train mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        loss.prepare(Side(student), Side(teacher))
    return loss.to(student.logits.dtype).train()


def leaves(student: Outputs) -> list[Tensor]:
    return [feature.requires_grad_() for feature in student.features.values()]


def check_reference(name: str, loss: TransferLoss, shared: Path) -> None:
    """Value and gradients, those of the inputs that the reference has a gradient of."""
    data: Any = np.load(shared / "fixtures" / "transfer_losses.npz")

    def stages(role: str) -> list[Tensor]:
        return [torch.from_numpy(data[f"features_{role}_{i}"]).double() for i in range(3)]

    student = outputs(*stages("student"))
    inputs = leaves(student)
    value = apply(loss, student, outputs(*stages("teacher")))
    assert value.item() == pytest.approx(float(data[f"value/{name}"]), rel=1e-9)
    value.backward()
    keys = [key for key in data if key.startswith(f"grad/{name}/")]
    assert keys
    for key in keys:
        gradient, expected = inputs[int(key[-1])].grad, torch.from_numpy(data[key]).double()
        # The reference was rounded to float32, which is exact to 2^-24 of each entry.
        torch.testing.assert_close(gradient, expected, rtol=6.1e-8, atol=1e-15)
