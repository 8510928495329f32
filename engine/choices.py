"""The files that the choices of every group are: ours in configs/, and a user's beside them."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from engine.overrides import path_setting, quote

ROOT = Path(__file__).resolve().parents[1] / "configs"
ROLES = ("teacher", "student")  # one folder of models serves both
TRANSFORM = "transform"  # the folder of what keys called transform may name
KEY = "config_path"  # names a user's folder


def own_folder(config: Mapping[str, Any]) -> Path | None:
    """The user's folder that a configuration was composed with."""
    path = config.get(KEY)
    return Path(path) if path else None


def own_words(config: Mapping[str, Any]) -> list[str]:
    """The argument that names the same folder in another command, if there is one."""
    path = config.get(KEY)
    return [path_setting(KEY, str(path))] if path else []


def folders() -> list[str]:
    """The names of the folders that hold choices."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir())


def groups(own: Path | None = None) -> dict[str, list[str]]:
    """The choices of every configuration group, by group.

    Args:
        own: a user's folder, with the layout of ours, whose choices stand beside ours.
    """
    names = [name for name in folders() if name not in ("model", TRANSFORM)] + [*ROLES]
    return {name: sorted(file.stem for file in files(name, own)) for name in names}


def files(group: str, own: Path | None = None) -> list[Path]:
    """The file of every choice of a group."""
    folder = _folder(group)
    return [file for root in _roots(own) for file in sorted((root / folder).glob("*.yaml"))]


def file_of(group: str, name: str, own: Path | None = None) -> Path:
    """The file of a choice, which exists if the choice does."""
    found = (root / _folder(group) / f"{name}.yaml" for root in _roots(own))
    return next((file for file in found if file.exists()), ROOT / _folder(group) / f"{name}.yaml")


def written(group: str, name: str, own: Path | None = None) -> DictConfig:
    """A choice's file, merged over the files of its group that it starts from.

    Hydra, which composes whole runs, takes a tenth of a second for each.
    """
    config = OmegaConf.load(file_of(group, name, own))
    assert isinstance(config, DictConfig)
    known = {file.stem for file in files(group, own)} - {name}
    for base in config.pop("defaults", []):
        if isinstance(base, str) and base in known:  # and no more that Hydra can do with defaults
            config = OmegaConf.merge(written(group, base, own), config)  # type: ignore[assignment]
    return config  # type: ignore[return-value]


def composed(overrides: Sequence[str], own: Path | None = None) -> DictConfig:
    """``train.yaml`` and group choices composed by Hydra, as a copy that the caller may change.

    Its node ``hydra`` holds what was chosen.
    """
    known = [ROOT / "train.yaml", *(f for name in folders() for f in files(name, own))]
    changed = max(path.stat().st_mtime_ns for path in known)
    return pickle.loads(_composed(ROOT, own, changed, tuple(overrides)))  # type: ignore[no-any-return]


@functools.cache  # it takes a third of a second
def _composed(root: Path, own: Path | None, changed: int, overrides: tuple[str, ...]) -> bytes:
    GlobalHydra.instance().clear()
    more = [f"hydra.searchpath=[{quote(f'file://{own.resolve()}')}]"] if own else []
    with initialize_config_dir(str(root), version_base="1.3", job_name="train"):
        return pickle.dumps(hydra_compose("train", [*more, *overrides], return_hydra_config=True))


def _roots(own: Path | None) -> list[Path]:
    return [ROOT, own] if own else [ROOT]


def _folder(group: str) -> str:
    return "model" if group in ROLES else group
