"""Which files of a folder of class folders are of a kind, and which are left out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
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


def class_files(
    folder: Path,
    classes: Sequence[str],
    other: str,
    kind: str = "image",
    extensions: Collection[str] = EXTENSIONS,
) -> tuple[list[tuple[Path, int]], str]:
    """The files of one split with their labels, and a line on what was left out, if anything.

    Args:
        folder: of class folders.
        classes: those that must be there.
        other: where these come from, for messages.
        kind: what a file holds, for messages.
        extensions: of such files, in lower case.

    Raises:
        ValueError: for other class folders, and for one without such a file.
    """
    found = class_folders(folder)
    if list(found) != list(classes):
        differ = ", ".join(sorted(set(found) ^ set(classes)))
        raise ValueError(f"{folder} and {other} differ in class folders: {differ}")
    files: list[tuple[Path, int]] = []
    left_out = [path for path in visible(folder) if not path.is_dir()]
    for label, path in enumerate(found.values()):
        entries = visible(path)
        own = [p for p in entries if p.is_file() and p.suffix.lower() in extensions]
        chosen = set(own)
        others = [p for p in entries if p not in chosen]
        if not own:
            inside = _kinds(others) or "nothing is in it"
            raise ValueError(
                f"{path}: no {kind} of this class is read ({inside}). {kind.capitalize()}s "
                f"directly in it, of {' '.join(sorted(extensions))}, are"
            )
        files += [(file, label) for file in own]
        left_out += others
    if not left_out:
        return files, ""
    words = f"{len(left_out)} are left out, as they are not {kind}s in class folders"
    return files, f"{words}: {_kinds(left_out)}"


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; the root itself is the test split if no folder is."""
    folders = {which: root / which for which in ("train", "val", "test") if (root / which).is_dir()}
    if "test" not in folders and "val" in folders:
        folders["test"] = folders.pop("val")
    return {"test": root} | folders


def pictures_in(folder: Path) -> list[Path]:
    """The images directly in a folder."""
    return [p for p in visible(folder) if p.is_file() and p.suffix.lower() in EXTENSIONS]


def unlabelled(folder: Path) -> tuple[list[tuple[Path, int]], str]:
    """The images directly in a folder, as :func:`class_files` has them, each of class 0."""
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
