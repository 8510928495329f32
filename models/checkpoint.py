"""Networks in files: weights with what they expect of their input, read without running code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from core.files import write_whole
from data.spec import InputSpec
from models.checksum import check, with_checksum, without_checksum
from models.checksum import metadata as header_metadata
from models.classifier import Classifier
from models.pickled import read_torch
from models.state_dict import Say, select

FORMAT = "reverie-1"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def save_network(
    path: str | os.PathLike[str], classifier: Classifier, metadata: Mapping[str, str]
) -> None:
    """Write weights, input specification and class names as safetensors, whole or not at all.

    The metadata hold a checksum, and files of equal contents are equal in their bytes.

    Args:
        metadata: more entries of the header, such as ``{"architecture": "resnet20"}`` or the
            ``transform``'s node. Those of
            this format take precedence: ``format``, ``input``; where there is a transform,
            ``takes``; and where the classes have names, ``classes`` and ``num_classes``.

    Raises:
        ValueError: if the file cannot be written; what was there before stays.
    """
    header = dict(metadata)
    header |= {"format": FORMAT, "input": json.dumps(classifier.spec.to_dict())}
    if classifier.transform is not None:
        header["takes"] = json.dumps(classifier.takes.to_dict())
    if classifier.classes:
        header["classes"] = json.dumps(classifier.classes)
        header["num_classes"] = str(len(classifier.classes))
    state = classifier.module.state_dict()
    # safetensors refuses channels-last and shared memory; a copy has neither
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    write_whole(Path(path), *with_checksum(save(tensors, header)))


def load_weights(
    path: str | os.PathLike[str], weights: str | None = None, say: Say = print
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict and its metadata (empty but for safetensors) on the CPU; runs no code.

    A file's contents decide what it is, not its name. A state dict may be in an entry of the file;
    if several are, ``state_dict`` or ``model`` is taken before an average of it.

    Args:
        weights: the entry to take instead, such as ``"state_dict_ema"``, or what the names of
            one network among several begin with.
        say: called with a line on a choice that was made, or on what is left out.

    Raises:
        ValueError: for a file that is missing, truncated, foreign, would need unpickling, or is not
            what its checksum says.
    """
    path = Path(path)
    start = _first_bytes(path)
    if start[8:] == b"{":
        state, metadata = _read_safetensors(path)
    elif start.startswith((b"PK\x03\x04", b"\x80")):
        state, metadata = read_torch(path), {}
    else:
        raise ValueError(
            f"{path} is not a checkpoint, or truncated: it is neither safetensors nor torch.save's"
        )
    return select(state, path, weights, say), metadata


def _first_bytes(path: Path) -> bytes:
    if path.is_fifo() or path.is_char_device():  # which might never end
        raise ValueError(f"cannot read the checkpoint {path}: it is not a regular file")
    try:
        with open(path, "rb") as file:
            return file.read(9)
    except OSError as error:
        hint = ""
        if path.is_dir():
            inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
            hint = f": name the file, such as {path / inside[0]}" if inside else ": name a file"
        raise ValueError(f"cannot read the checkpoint {path}: {error.strerror}{hint}") from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    check(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, without_checksum(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupt: {error}") from None


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of ours says about its network's input; only its header is read.

    Returns:
        ``shape``, ``range``, ``mean`` and ``std``, and ``classes``: names, or how many; more where
        its kind of input has more.

    Raises:
        ValueError: for a file that cannot be read, or whose header makes no sense.
    """
    if (spec := read_spec(path)) is None:
        return {}
    _, classes, count = read_metadata(header_metadata(Path(path)), path)
    named: dict[str, Any] = {"classes": classes or count} if count else {}
    if (before := before_transform(path)) is not None and before.columns:
        named["columns"] = before.columns  # by which a table is read, whatever becomes of it
    return spec.to_dict() | named


def read_spec(path: str | os.PathLike[str]) -> InputSpec | None:
    """What a file's network expects of its input; only the header is read.

    Returns:
        None where the file does not say.

    Raises:
        ValueError: for a file that cannot be read, or whose header makes no sense.
    """
    if _first_bytes(Path(path))[8:] != b"{":
        return None
    return read_metadata(header_metadata(Path(path)), path)[0]


def taken(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> InputSpec:
    """What a network with a transform is shown, before it.

    Raises:
        ValueError: if the file does not say so.
    """
    try:
        return InputSpec(**json.loads(metadata["takes"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} does not say what its transform takes ({reason}): a file that a run wrote does"
        ) from None


def before_transform(path: str | os.PathLike[str]) -> InputSpec | None:
    """What a file's network is shown, before its transform; only the header is read.

    Returns:
        None for a network without one, and where the file does not say.

    Raises:
        ValueError: for a file that cannot be read, or whose header makes no sense.
    """
    if _first_bytes(Path(path))[8:] != b"{":
        return None
    metadata = header_metadata(Path(path))
    return taken(metadata, path) if "takes" in metadata else None


def saved_transform(path: str | os.PathLike[str]) -> Any:
    """The node of the transform of a file's network; None where the file does not say."""
    if _first_bytes(Path(path))[8:] != b"{":
        return None
    try:
        return json.loads(header_metadata(Path(path)).get("transform", "null"))
    except (ValueError, RecursionError):
        return None


def read_metadata(
    metadata: Mapping[str, str], path: str | os.PathLike[str]
) -> tuple[InputSpec | None, tuple[str, ...], int]:
    """Specification, class names and class count; None, empty and 0 where the file does not say.

    Raises:
        ValueError: for metadata of this format that are not valid.
    """
    if metadata.get("format") != FORMAT:
        return None, (), 0
    try:
        spec = InputSpec(**json.loads(metadata["input"]))
        classes = json.loads(metadata.get("classes", "[]"))
        count = int(metadata.get("num_classes", len(classes)))
        if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
            raise ValueError("classes is not a list of names")
        if count < 0 or (classes and count != len(classes)):
            raise ValueError(f"num_classes is {count}, but classes has {len(classes)}")
    except RecursionError:
        raise ValueError(f"{path}: its metadata cannot be read: nested too deeply") from None
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise ValueError(f"{path}: its metadata cannot be read: {reason}") from None
    return spec, tuple(classes), count
