"""Which files of a folder of class folders are images, and which are left out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.pictures import EXTENSIONS


def class_folders(folder: Path) -> dict[str, Path]:
    """The class folders in a folder by their names in NFC, in order of these.

    Raises:
        ValueError: for broken links, and for names that differ only in their Unicode form.
    """
    found: dict[str, Path] = {}
    for path in visible(folder):
        if not path.is_dir():
            continue
        name = unicodedata.normalize("NFC", path.name)
        if name in found:
            raise ValueError(
                f"{folder} has two class folders {name!r}, whose names differ in their Unicode "
                "form only: merge or rename them"
            )
        found[name] = path
    return dict(sorted(found.items()))


def visible(folder: Path) -> list[Path]:
    """Entries by name, without the hidden ones that notebooks and file managers leave behind.

    Raises:
        ValueError: for a folder that cannot be read, and for broken links.
    """
    try:
        paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        lost = [p for p in paths if not p.exists()]
    except OSError as error:
        raise ValueError(f"cannot read the folder {folder}: {error.strerror}") from error
    if lost:
        raise ValueError(f"{lost[0]} is a broken link: repair or remove it")
    return paths


def image_files(
    folder: Path, classes: Sequence[str], other: str
) -> tuple[list[tuple[Path, int]], str]:
    """The images of one split with their labels, and a line on what was left out, if anything.

    Args:
        folder: of class folders.
        classes: those that must be there.
        other: where these come from, for messages.

    Raises:
        ValueError: for other class folders, and for one without an image.
    """
    found = class_folders(folder)
    if list(found) != list(classes):
        differ = ", ".join(sorted(set(found) ^ set(classes)))
        raise ValueError(f"{folder} and {other} differ in class folders: {differ}")
    files: list[tuple[Path, int]] = []
    left_out = [path for path in visible(folder) if not path.is_dir()]
    for label, path in enumerate(found.values()):
        entries = visible(path)
        images = [p for p in entries if p.is_file() and p.suffix.lower() in EXTENSIONS]
        chosen = set(images)
        others = [p for p in entries if p not in chosen]
        if not images:
            raise ValueError(
                f"{path}: no image of this class is read ({_kinds(others) or 'nothing is in it'}). "
                f"Images directly in it, of {' '.join(sorted(EXTENSIONS))}, are"
            )
        files += [(image, label) for image in images]
        left_out += others
    if not left_out:
        return files, ""
    words = f"{len(left_out)} are left out, as they are not images in class folders"
    return files, f"{words}: {_kinds(left_out)}"


def pictures_in(folder: Path) -> list[Path]:
    """The images directly in a folder."""
    return [p for p in visible(folder) if p.is_file() and p.suffix.lower() in EXTENSIONS]


def unlabelled(folder: Path) -> tuple[list[tuple[Path, int]], str]:
    """The images directly in a folder, as :func:`image_files` has them, each of class 0."""
    images = pictures_in(folder)
    chosen = set(images)
    left_out = [path for path in visible(folder) if path not in chosen]
    return [(image, 0) for image in images], _kinds(left_out)


def _kinds(paths: Sequence[Path]) -> str:
    """Such as ``3 .gif, 1 folder``."""
    kinds = Counter(_kind(path) for path in paths)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def _kind(path: Path) -> str:
    if not path.is_file():
        return "folder" if path.is_dir() else "pipe or device"
    return path.suffix.lower() or "without an extension"
