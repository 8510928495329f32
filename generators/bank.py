"""A store of synthesized inputs that lives and dies with its run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from data.spec import InputSpec


class Bank:
    """The latest ``capacity`` inputs as uint8, with their classes; first in, first out.

    A value is off by at most 1/510 of the range. The store lies on the device where it takes no
    more than half of the memory that is free there, and else on the host, where each draw has to
    wait for the device.

    Args:
        spec: of the inputs.
        capacity: how many are kept.
        device: where drawn inputs are wanted.

    Raises:
        ValueError: for a capacity below 1.
    """

    def __init__(self, spec: InputSpec, capacity: int, device: torch.device) -> None:
        if capacity < 1:
            raise ValueError(f"a bank's capacity must be at least 1, not {capacity}")
        self.spec = spec
        self.capacity = capacity
        self.device = device
        self.added = 0
        place = _place(capacity * torch.Size(spec.shape).numel(), device)
        self.images = torch.empty((capacity, *spec.shape), dtype=torch.uint8, device=place)
        self.labels = torch.empty(capacity, dtype=torch.int64, device=place)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Keep images [B, *shape], clamped to the range, and labels [B] instead of the oldest."""
        low, high = self.spec.range
        size = len(images)
        kept = slice(max(0, size - self.capacity), size)
        place = self.images.device
        index = torch.arange(self.added + kept.start, self.added + size, device=place)
        index %= self.capacity
        quantized = ((images[kept] - low) * (255 / (high - low))).round().clamp(0, 255)
        self.images[index] = quantized.to(place, torch.uint8)
        self.labels[index] = labels[kept].to(place)
        self.added += size

    def sample(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw with replacement: images [size, *shape] in the range, labels and indices [size]."""
        assert len(self), "nothing was added yet"
        index = torch.randint(len(self), (size,), generator=generator, device=self.device)
        place = self.images.device
        chosen = index.to(place)
        low, high = self.spec.range
        images = self.images[chosen].to(self.device).float() * ((high - low) / 255) + low
        return images, self.labels[chosen].to(self.device), index

    def state_dict(self) -> dict[str, Any]:
        filled = len(self)
        return {
            "images": self.images[:filled].clone(),
            "labels": self.labels[:filled].clone(),
            "added": self.added,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the whole content.

        Raises:
            ValueError: if the state is of a bank of another capacity or shape.
        """
        filled = min(state["added"], self.capacity)
        if state["images"].shape != (filled, *self.spec.shape):
            raise ValueError(
                f"the saved bank holds {list(state['images'].shape)} inputs, but this one takes "
                f"{self.capacity} of {list(self.spec.shape)}: continue with the saved settings"
            )
        self.added = state["added"]
        self.images[:filled] = state["images"].to(self.images.device)
        self.labels[:filled] = state["labels"].to(self.labels.device)


def _place(size: int, device: torch.device) -> torch.device:
    if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] // 2:
        return torch.device("cpu")
    return device
