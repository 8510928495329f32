"""Embeddings of class names: the input of NAYER's generator (CVPR 2024)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

BUILT_IN = Path(__file__).with_name("label_embeddings.safetensors")


def label_embeddings(classes: Sequence[str], path: str | Path | None = None) -> Tensor:
    """The embedding of each class name: float32 [len(classes), D], of length 1, on the CPU.

    Args:
        classes: names, exactly as the file has them.
        path: a file made by ``python -m tools.label_embeddings``; None takes the one that comes
            with Reverie, which knows the built-in data sets (D = 384).

    Raises:
        ValueError: for names that the file does not have, or a file that cannot be read.
    """
    file = Path(path) if path else BUILT_IN
    names, embeddings = _read(file)
    row = {name: i for i, name in enumerate(names)}
    missing = [name for name in classes if name not in row]
    if missing:
        raise ValueError(
            f"{file} has no embedding of {', '.join(missing)}. Make one that has, and give its "
            f"path: {command_for(list(dict.fromkeys(classes)), 'labels.safetensors')}"
        )
    return embeddings[[row[name] for name in classes]].float()


def command_for(names: Sequence[str], out: str) -> str:
    """The command that makes a file of the embeddings of these names."""
    return shlex.join(["python", "-m", "tools.label_embeddings", *names, "--out", out])


def _read(file: Path) -> tuple[list[str], Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            names, embeddings = (
                json.loads(opened.metadata()["names"]),
                opened.get_tensor("embeddings"),
            )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = "does not exist" if not file.exists() else "holds no label embeddings"
        raise ValueError(
            f"{file} {reason}: make it with python -m tools.label_embeddings NAMES... --out {file}"
        ) from error
    assert isinstance(names, list)
    assert embeddings.shape[:1] == torch.Size([len(names)])
    return names, embeddings
