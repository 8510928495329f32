"""Arrays in an .npz file, which is not trusted: all is checked, and nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from core.memory import check_memory

SUFFIX = ".npy"
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Unsuitable(Exception):
    """The rest of a sentence that begins with the file's name."""


def keys(file: Path) -> list[str]:
    """Names of the arrays in the file.

    Raises:
        ValueError: for a file that is not an .npz file.
    """
    with _opened(file) as archive:
        return [name.removesuffix(SUFFIX) for name in archive.namelist()]


def read_arrays(file: Path, key: str) -> NDArray[Any]:
    """One array; no byte of the others is read.

    Raises:
        ValueError: for a file or an array that is damaged, holds objects, or has a false header.
    """
    with _opened(file) as archive:
        found = [i for i in archive.infolist() if i.filename.removesuffix(SUFFIX) == key]
        if not found:
            raise _Unsuitable(f"lacks {key}")
        if len(found) > 1:
            raise _Unsuitable(f"holds {key} {len(found)} times: save it anew with numpy.savez")
        with archive.open(found[0]) as member:
            needed = _claimed(member, key)
            there = found[0].file_size - member.tell()
            if needed != there:
                raise _Unsuitable(
                    f"is damaged: {key} should have {needed:,} bytes, but has {there:,}"
                )
        check_memory(needed, f"{key} in {file}", "take fewer or smaller images")
        with archive.open(found[0]) as member:
            array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
            return array


def length(file: Path, key: str) -> int:
    """Rows of an array, which is not read.

    Raises:
        ValueError: for a file or an array that is damaged, or holds objects.
    """
    with _opened(file) as archive, archive.open(key + SUFFIX) as member:
        shape = _header(member, key)[0]
        return shape[0] if shape else 0


def _claimed(member: IO[bytes], key: str) -> int:
    """Bytes of the array according to its header, before memory is allocated for it."""
    shape, size = _header(member, key)
    return math.prod(shape) * size


def _header(member: IO[bytes], key: str) -> tuple[tuple[int, ...], int]:
    """The shape of an array, and the bytes of one of its values."""
    try:
        shape, _, dtype = HEADERS[npy.read_magic(member)](member)
    except (zipfile.BadZipFile, EOFError):
        raise
    except Exception as error:  # evaluating a literal can raise nearly anything
        raise _Unsuitable(f"has no array under {key}: write it with numpy.savez") from error
    if dtype.hasobject:
        raise _Unsuitable(
            "holds Python objects, which are never unpickled: "
            "save plain uint8 images and integer labels"
        )
    if any(side < 0 for side in shape):
        raise _Unsuitable(f"is damaged: {key} claims the shape {shape}")
    return shape, dtype.itemsize


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever makes it unreadable is raised as one error that names the file."""
    if not file.is_file():  # reading a pipe would block
        raise ValueError(f"{file} is not a readable .npz file, but a folder or a device")
    try:
        archive = zipfile.ZipFile(file)
    except PermissionError as error:
        raise ValueError(f"{file} may not be read: {error.strerror}") from error
    except Exception as error:
        raise ValueError(
            f"{file} is not a readable .npz file: write it with numpy.savez"
        ) from error
    try:
        with archive:
            yield archive
    except _Unsuitable as error:
        raise ValueError(f"{file} {error}") from error
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise ValueError(f"{file} is damaged ({error}): copy or download it again") from error
    except MemoryError:
        raise
    except Exception as error:  # of damaged, encrypted or unusually packed members
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} is damaged ({reason}): copy or download it again") from error
