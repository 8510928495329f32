"""Files that claim what is not so are refused before memory is taken for their claims."""

import io
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.runtime import Runtime
from data.files import npz

Write = Callable[..., Path]


def member(descr: Any, shape: tuple[int, ...], content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + content


def replaced(path: Path, **members: bytes) -> Path:
    """The file with other bytes for some members."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**kept, **{f"{k}.npy": v for k, v in members.items()}}.items():
            archive.writestr(name, content)
    return path


LITERAL = b"\x93NUMPY\x01\x00" + struct.pack("<H", 900) + (b"[" * 899 + b"\n")
WRONG = [
    (b"hello", "has no array under test_images"),
    (b"", "has no array under test_images"),
    (member("|u1", (20, 10**7, 10**7)), "test_images should have 2,000,000,000,000,000 bytes"),
    (member("|u1", (2**63, 2**63)), "but has 0"),
    (member("|u1", (-9, 6, 6)), "claims the shape (-9, 6, 6)"),
    (member("|u1", (9, 6, 6), bytes(400)), "should have 324 bytes, but has 400"),
    (member("|O", (9, 6, 6)), "never unpickled"),
    (LITERAL, "has no array under test_images"),
]


@pytest.mark.parametrize(("content", "said"), WRONG, ids=[said for _, said in WRONG])
def test_members(content: bytes, said: str, write: Write, runtime: Runtime) -> None:
    path = replaced(write(), test_images=content)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        npz(str(path), runtime).open("test")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_no_machine_holds(
    write: Write, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = npz(str(write()), runtime)
    monkeypatch.setattr("core.memory.machine_memory", lambda: 9 * 6 * 6 * 3 - 1)
    with pytest.raises(ValueError, match=r"test_images in .*small\.npz would take .* GiB"):
        data.open("test")


def test_a_flipped_bit_is_noticed(write: Write, runtime: Runtime) -> None:
    path = write()
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("test_images.npy")
    content[info.header_offset + 300] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"small\.npz is damaged \(Bad CRC"):
        npz(str(path), runtime).open("test")


def test_two_members_of_one_name(write: Write, runtime: Runtime) -> None:
    path = write()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test_labels.npy", archive.read("train_labels.npy"))
    with pytest.raises(ValueError, match=r"small\.npz holds test_labels 2 times"):
        npz(str(path), runtime)


def test_layouts_of_the_same_numbers(write: Write, runtime: Runtime) -> None:
    """Big-endian labels, and images column by column, as MATLAB's users have them."""
    data = npz(str(write()), runtime).open("train")
    images, labels = data.batch(slice(0, 20))
    turned = np.asfortranarray(
        (images * 255).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    )
    path = write(train_images=turned, train_labels=labels.numpy().astype(">i4"))
    again = npz(str(path), runtime).open("train").batch(slice(0, 20))
    assert (again[0] == images).all()
    assert (again[1] == labels).all()
