"""A small data set in a file, and a runtime that computes on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.runtime import Runtime

Write = Callable[..., Path]


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(device="cpu")


@pytest.fixture
def arrays() -> dict[str, Any]:
    """Three classes of 6 x 6 colour images in MedMNIST's key layout."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {"classes": np.array(["red", "green", "blue"])}
    for split, count in (("train", 20), ("test", 9)):
        content[f"{split}_images"] = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        content[f"{split}_labels"] = np.arange(count).astype(np.uint8) % 3
    return content


@pytest.fixture
def write(tmp_path: Path, arrays: dict[str, Any]) -> Write:
    """Write the small data set, with some arrays replaced (or left out, where None)."""

    def write(**changes: Any) -> Path:
        content = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
        path = tmp_path / "small.npz"
        np.savez(path, **content)
        return path

    return write
