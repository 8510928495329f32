"""Reading files of `torch.save` without running code, or saying why that is impossible."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

SAVE_ALONE = "save its state dict alone with safetensors.torch.save_file"
# What training scripts save beside the weights. None of it is built: `Inert` stands for it.
BESIDE = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "datetime.datetime",
    "datetime.date",
    "datetime.timedelta",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "_codecs.encode",  # the bytes of a numpy scalar
)


class Inert:
    """Replaces an object that is not part of a state dict, and does nothing."""

    def __new__(cls, *args: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_torch(path: Path) -> Any:
    """The content of a file of `torch.save`, on the CPU; harmless objects come as `Inert`.

    Raises:
        ValueError: for a file that is truncated, another kind of archive, or holds an object
            that only code from the file could rebuild; the object is named.
    """
    if zipfile.is_zipfile(path):
        _check_archive(path)
    inert = [(Inert, name) for name in BESIDE]
    try:
        with (
            open(path, "rb") as file,  # given a path, torch.load would judge by its name
            warnings.catch_warnings(action="ignore"),  # the error below says what matters
            torch.serialization.safe_globals(inert),  # type: ignore[arg-type]
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refused(path, str(error))) from None
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).split("\n")[0][:100] or type(error).__name__
        raise ValueError(f"{path} is truncated or corrupt: {reason}") from None


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {Path(name).name for name in archive.namelist()}
    if "constants.pkl" in members:
        kind = (
            f"TorchScript, which holds code: torch.jit.load it where you trust it, and {SAVE_ALONE}"
        )
    elif any(name.endswith(".npy") for name in members):
        kind = f"npz: make tensors of its arrays, and {SAVE_ALONE}"
    elif "data.pkl" not in members:
        kind = "another archive"
    else:
        return
    raise ValueError(f"{path} is not a checkpoint of torch.save but {kind}")


def _refused(path: Path, message: str) -> str:
    named = re.search(r"GLOBAL (\S+)", message)
    if named is None:
        return (
            f"{path} is truncated, or was not pickled by torch.save with its own pickle_protocol: "
            "it needs unpickling, which would run code from the file; where you trust it, "
            f"{SAVE_ALONE}"
        )
    return (
        f"{path} needs unpickling of {named[1][:100]!r} (a whole network, or an object saved "
        "beside its weights), which would run code from the file; where you trust it, "
        f"torch.load it with weights_only=False and {SAVE_ALONE}"
    )
