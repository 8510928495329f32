"""Networks in files, with what they expect of their input: save, load and freeze."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from data.spec import InputSpec
from engine.files import write_whole
from models.check import check_network
from models.classifier import Classifier

FORMAT = "reverie-1"
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


def save_network(
    path: str | os.PathLike[str], classifier: Classifier, metadata: Mapping[str, str]
) -> None:
    """Write weights, input specification and class names as safetensors, whole or not at all.

    Args:
        metadata: more entries of the header, such as ``{"architecture": "resnet20"}``. Those of
            this format win: ``format``, ``input`` and, where the classes have names,
            ``classes`` and ``num_classes``.

    Raises:
        ValueError: where the file cannot be written; what was there before stays.
    """
    header = dict(metadata)
    header |= {"format": FORMAT, "input": json.dumps(classifier.spec.to_dict())}
    if classifier.classes:
        header["classes"] = json.dumps(classifier.classes)
        header["num_classes"] = str(len(classifier.classes))
    state = classifier.module.state_dict()
    # safetensors refuses channels-last and shared memory, which a copy has not
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    write_whole(Path(path), save(tensors, header))


def load_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict and its metadata (empty but for safetensors) on the CPU; runs no code.

    The contents decide what a file is, not its name. The usual wrappers around a state dict
    are taken off.

    Raises:
        ValueError: for a file that is missing, truncated, foreign, or would need unpickling.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    if start[8:] == b"{":
        return _read_safetensors(path)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _unwrap(_read_torch(path), path), {}
    raise ValueError(
        f"{path} is no checkpoint, or is truncated: it is neither safetensors nor torch.save's"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupt: {error}") from None


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [Path(name).name for name in archive.namelist()]
        if "data.pkl" not in members or "constants.pkl" in members:
            raise ValueError(
                f"{path} is not a checkpoint of torch.save (but perhaps npz or TorchScript): "
                "re-save its state dict with safetensors.torch.save_file"
            )
    try:
        with open(path, "rb") as file:  # given a path, torch.load goes by its name
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} needs unpickling, which would run code from the file; where you trust it, "
            "re-save its state dict with safetensors.torch.save_file"
        ) from None
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).split("\n")[0][:100] or type(error).__name__
        raise ValueError(f"{path} is truncated or corrupt: {reason}") from None


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    named = isinstance(content, Mapping) and len(content) > 0
    if not named or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"{path} holds no state dict (tensors by name), neither by itself nor under "
            + ", ".join(WRAPPERS)
        )
    for prefix in PREFIXES * 2:  # either may be around the other
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): v for name, v in content.items()}
    return dict(content)


def load_classifier(
    module: nn.Module,
    path: str | os.PathLike[str],
    default_spec: InputSpec | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Iterable[str] = (),
    taps: Iterable[str] = (),
    statistics: bool = False,
) -> Classifier:
    """Load a file's weights into ``module``, with the input specification they were trained for.

    Args:
        module: an untrained network of the file's architecture.
        default_spec: the data's, whose shape the network's inputs must have and whose range is
            assumed where the file does not say; None where the data is not known.
        mean: one value per channel, instead of the file's; needed where the file has none.
        std: likewise.
        classes: the data's class names, used where the file has none.
        taps: see :class:`models.classifier.Classifier`.
        statistics: likewise.

    Raises:
        ValueError: where file, network and data do not fit together, or the normalisation is
            not known; see also :func:`load_weights`.
    """
    state, metadata = load_weights(path)
    saved_spec, saved_classes, count = _parse(metadata, path)
    spec = _specification(saved_spec, default_spec, mean, std, path)
    known = tuple(classes)
    if count and known and count != len(known):
        raise ValueError(f"{path} knows {count} classes, but the data has {len(known)}")
    _load_state(module, state, path, metadata.get("architecture"))
    classifier = Classifier(module, spec, saved_classes or known, taps, statistics)
    if count or known:
        check_network(classifier, count or len(known))
    return classifier


def _parse(
    metadata: Mapping[str, str], path: str | os.PathLike[str]
) -> tuple[InputSpec | None, tuple[str, ...], int]:
    """Specification, class names and class count; None, empty and 0 where the file does not say."""
    if metadata.get("format") != FORMAT:
        return None, (), 0
    try:
        spec = InputSpec(**json.loads(metadata["input"]))
        classes = tuple(json.loads(metadata.get("classes", "[]")))
        return spec, classes, int(metadata.get("num_classes", "0"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its metadata cannot be read: {error}") from None


def _specification(
    saved: InputSpec | None,
    default: InputSpec | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    path: str | os.PathLike[str],
) -> InputSpec:
    base = saved or default
    if base is None or (saved is None and (mean is None or std is None)):
        raise ValueError(
            f"{path} does not say how its inputs were normalised: "
            "pass teacher.mean=[...] teacher.std=[...], one value per channel"
        )
    if default is not None and base.shape != default.shape:
        square = base.shape[0] == default.shape[0] and len(set(base.shape[1:])) == 1
        hint = f"set data.size={base.shape[-1]}" if square else "choose other data"
        raise ValueError(
            f"{path} takes inputs of shape {_dims(base.shape)}, "
            f"but the data has {_dims(default.shape)}: {hint}, or another teacher"
        )
    given = {k: tuple(v) for k, v in (("mean", mean), ("std", std)) if v is not None}
    try:
        return replace(base, **given)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"teacher.mean and teacher.std do not fit the data: {error}") from None


def _load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    architecture: str | None,
) -> None:
    expected = module.state_dict()
    # PyTorch itself fills in BatchNorm's counter, which older checkpoints do not have.
    absent = (k for k in expected if not k.endswith("num_batches_tracked"))
    problems = {
        "missing": [k for k in absent if k not in state],
        "unexpected": [k for k in state if k not in expected],
        "of another shape": [
            f"{k} ({_dims(state[k].shape)} in the file, {_dims(expected[k].shape)} in the network)"
            for k in expected
            if k in state and state[k].shape != expected[k].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in problems.items() if keys)
        hint = f"; the file says that it holds {architecture!r}" if architecture else ""
        raise ValueError(f"{path} does not fit {type(module).__name__}: {listed}{hint}")
    module.load_state_dict(state, strict=True)


def _some(keys: Sequence[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _dims(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def freeze(classifier: Classifier) -> Classifier:
    """Put a network in eval mode and let it take no gradient; returns it."""
    return classifier.requires_grad_(False).eval()
