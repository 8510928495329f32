"""A user's own parts beside ours: the choices and modules in the folder of ``config_path=DIR``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import NamespaceLoader, PathFinder
from pathlib import Path

import yaml

from engine.choices import KEY, ROLES, ROOT, files, folders
from engine.overrides import named

OURS = {"benchmarks", "configs", "core", "data", "distillers", "engine", "generators", "models"}
OURS |= {"tests", "tools", "train"}
# A choice's name that Hydra's grammar reads as that very text
_CHOICE = re.compile(r"(?!(?:null|true|false)$)[a-z]\w*([.-]\w+)*", re.ASCII | re.IGNORECASE)


def user_folder(arguments: Sequence[str], mistakes: list[str]) -> Path | None:
    """The folder that the arguments name, whose modules can be imported from now on.

    It stands last on the import path: its modules hide none of ours, nor any library's.

    Args:
        arguments: of the command.
        mistakes: gains a line for everything in the folder that cannot be meant so.

    Returns:
        The folder, or None where none is named.

    Raises:
        ValueError: if it cannot be a folder of parts, so that nothing else can be judged.
    """
    paths = [path for setting in named(arguments, KEY) if (path := setting.path()) is not None]
    if not paths:
        return None
    if len(set(paths)) > 1:
        raise ValueError(f"{KEY} is given twice, {' and '.join(paths)}: put all into one folder")
    folder = Path(paths[0])
    _check_folder(folder)
    where = str(folder.resolve())
    if where not in sys.path:
        sys.path.append(where)
    importlib.invalidate_caches()
    mistakes += [*_wrong_choices(folder), *_wrong_modules(folder)]
    return folder


def modules_in(folder: Path) -> dict[str, Path]:
    """What can be imported from a folder, by name: modules, packages, and folders with modules."""
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        found[module.name] = folder / (module.name if module.ispkg else f"{module.name}.py")
    for path in folder.iterdir():
        if path.is_dir() and any(path.glob("*.py")):
            found[path.name] = path
    return {name: path for name, path in sorted(found.items()) if name.isidentifier()}


def _check_folder(folder: Path) -> None:
    """Check that there are choices in a folder.

    Raises:
        ValueError: saying what to give in its place.
    """
    known = f"{', '.join(f'{name}/' for name in folders()[:-1])} or {folders()[-1]}/"
    if not folder.exists():
        raise ValueError(f"{KEY}={folder} does not exist: give a folder that holds {known}")
    if not folder.is_dir():
        raise ValueError(f"{KEY}={folder} is a file: give the folder that holds {known}")
    if folder.resolve() == ROOT.resolve():
        raise ValueError(f"{KEY}={folder} is this project's own folder: leave it out")
    if any(files(name, folder)[len(files(name)) :] for name in folders()):
        return
    near = [
        f"; {path.name}/ is called {'model' if path.name in ROLES else meant[0]}/"
        for path in sorted(folder.iterdir())
        if any(path.glob("*.yaml"))
        and path.name not in folders()
        and (meant := difflib.get_close_matches(path.name, [*folders(), *ROLES], 1))
    ]
    raise ValueError(
        f"{KEY}={folder} holds no choices: put YAML files into {known} below it{''.join(near)}"
    )


def _wrong_choices(folder: Path) -> Iterator[str]:
    """Names that are ours or cannot be chosen, and files that cannot be read."""
    if (folder / "train.yaml").exists():
        yield f"{folder / 'train.yaml'} has the name of {ROOT / 'train.yaml'}: rename it"
    for group in folders():
        for path in sorted((folder / group).glob("*.y*ml")):
            ours = ROOT / group / path.name
            if path.suffix != ".yaml" or not _CHOICE.fullmatch(path.stem):
                yield f"{path} cannot be chosen: rename it to letters, digits and _, with .yaml"
            elif ours.exists():
                yield f"{path} has the name of {ours}: rename it"
            elif mistake := _unreadable(path):
                yield f"{path} {mistake}"


def _unreadable(path: Path) -> str | None:
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"is not YAML: {' '.join(str(error).split())[:200]}"
    return None if isinstance(content, dict) else "holds no keys: see a file of configs/"


def _wrong_modules(folder: Path) -> Iterator[str]:
    """Modules that would not be imported, since others of that name come before."""
    for name, path in modules_in(folder).items():
        if other := _elsewhere(name, folder.resolve()):
            hint = "" if path.is_file() else ", or move its modules out"
            yield f"{path} has the name of {other}, which comes before it: rename it{hint}"


def _elsewhere(name: str, folder: Path) -> str | None:
    """What else is imported by this name, in words."""
    if name in OURS:
        return f"{name} of this project"
    if name in sys.stdlib_module_names:
        return f"Python's own {name}"
    if name == "__main__":
        return None
    others = [entry for entry in sys.path if Path(entry).resolve() != folder]
    specs = [PathFinder.find_spec(name, others)]
    try:
        specs.append(importlib.util.find_spec(name))  # which knows editable installs
    except ValueError:  # a module without a specification, made by a program
        return f"the module {name}"
    for spec in filter(None, specs):
        if spec.loader is None or isinstance(spec.loader, NamespaceLoader):
            continue  # a folder without __init__.py, which any module hides
        if spec.origin is None or not Path(spec.origin).resolve().is_relative_to(folder):
            return f"the module {name} in {spec.origin}"
    return None
