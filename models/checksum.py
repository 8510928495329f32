"""A checksum inside a safetensors file, over its weights and its header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

KEY = "reverie.sha256"  # in the header's metadata; only our files have it
LENGTH = 8  # bytes at the start that hold the length of the header
LARGEST = 100_000_000  # bytes of a header, as safetensors itself has it
CHUNK = 1 << 20


def with_checksum(content: bytes) -> tuple[bytes, memoryview]:
    """The same file with its checksum, and with its header in a fixed order.

    safetensors itself writes the metadata in a different order at every call.

    Args:
        content: a whole file, as ``safetensors.torch.save`` returns it.

    Returns:
        Its two parts, header and weights, so that the weights need not be copied.
    """
    end = LENGTH + int.from_bytes(content[:LENGTH], "little")
    header = json.loads(content[LENGTH:end])
    body = memoryview(content)[end:]
    digest = hashlib.sha256(_canonical(header))
    digest.update(body)
    header["__metadata__"] = header.get("__metadata__", {}) | {KEY: digest.hexdigest()}
    text = _canonical(header)
    text += b" " * (-len(text) % LENGTH)  # the weights stay aligned
    return len(text).to_bytes(LENGTH, "little") + text, body


def without_checksum(metadata: dict[str, str]) -> dict[str, str]:
    """Metadata without the checksum, to be written again with other weights."""
    return {k: v for k, v in metadata.items() if k != KEY}


def check(path: Path) -> None:
    """Verify a safetensors file's checksum; a file without one, or without a header, passes.

    Raises:
        ValueError: if it is not what was written.
    """
    with open(path, "rb") as file:
        header = _header(file)
        wanted = (header or {}).get("__metadata__", {}).pop(KEY, None)
        if header is None or wanted is None:
            return
        digest = hashlib.sha256(_canonical(header))
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != wanted:
        raise ValueError(
            f"{path} is damaged: its checksum is wrong. Put a good copy there, or make it again; "
            f"if it was changed on purpose, save it without {KEY!r} in its metadata"
        )


def metadata(path: Path) -> dict[str, str]:
    """The header's metadata; empty for a file that is not safetensors."""
    with open(path, "rb") as file:
        return (_header(file) or {}).get("__metadata__", {})  # type: ignore[no-any-return]


def _header(file: BinaryIO) -> dict[str, Any] | None:
    length = int.from_bytes(file.read(LENGTH), "little")
    if not 2 <= length <= LARGEST:
        return None
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):  # safetensors itself says what is wrong with it
        return None
    sound = isinstance(header, dict) and isinstance(header.get("__metadata__", {}), dict)
    return header if sound else None


def _canonical(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
