"""From a configuration back to the command that composes it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.annotations import is_path
from engine.choices import groups, own_folder, own_words
from engine.config import compose
from engine.identity import NOT_IDENTITY
from engine.keys import annotation_of
from engine.overrides import path_setting, quote

NAMED = ("experiment", "method", "data")  # groups that a command always names, if chosen
ELSEWHERE = (*NOT_IDENTITY, "budget")  # what a run computes follows from its number of steps
ABSENT = object()  # a key that is removed
PASSES = (
    4  # one for what is written in its place, one for what is read from there; and two to spare
)


def overrides_of(config: Mapping[str, Any]) -> list[str]:
    """The arguments of ``train.py`` that compose this plain configuration.

    It is made from what the configuration says, not from what somebody typed: equal runs have equal
    commands, and a teacher trained on the way has a command of its own. Keys that do not change
    what is computed, such as where the run and its data lie, are left out.

    Raises:
        ValueError: for a configuration that no command of this version composes.
    """
    chosen = [*own_words(config), *_groups(config)]
    try:
        values = _changes(OmegaConf.create(_composed(tuple(chosen))), config)
    except OmegaConfBaseException as error:  # a value that reads like an interpolation
        raise ValueError(f"no command composes this configuration: {error}") from error
    base = OmegaConf.create(_composed(tuple(chosen)))
    if base.budget is not None:  # of an experiment, whose place the number of steps takes
        values["steps"] = config["steps"]
    return [*chosen, *(_override(base, key, value) for key, value in values.items())]


def data_of(config: Mapping[str, Any]) -> list[str]:
    """Of these arguments, those that say what data there is: for programs that only measure."""
    base = _composed((*own_words(config), f"data={config['choices']['data']}"))
    data = {k: v for k, v in config["data"].items() if k not in ("training", "steps", "root")}
    left = {key: value for key, value in _plain(base)["data"].items() if key not in data}
    values = _changes(OmegaConf.create(base), {**_plain(base), "data": {**left, **data}})
    return [f"data={config['choices']['data']}", *(_override(base, *v) for v in values.items())]


def _changes(base: DictConfig, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that make ``base`` (which becomes it) the configuration, with their values."""
    values: dict[str, Any] = {}
    for _ in range(PASSES):
        differing = dict(_differences(_plain(base), config))
        # What is read from elsewhere follows when that is set.
        own = {k: v for k, v in differing.items() if not _derived(base, k.split("."))}
        for key, value in (own or differing).items():
            _apply(base, key, value)
            values[key] = value
        if not differing:
            return values
    raise ValueError("no command composes this configuration")


def _groups(config: Mapping[str, Any]) -> list[str]:
    """The choices that the configuration's group choices need, as overrides."""
    choices = {group: str(name).partition("(")[0] for group, name in config["choices"].items()}
    named = [f"{group}={choices[group]}" for group in NAMED if group in choices]
    base, known = _composed((*own_words(config), *named)), groups(own_folder(config))
    before = {group: str(name).partition("(")[0] for group, name in base.choices.items()}
    others = [g for g in choices if g in known and g not in NAMED and before.get(g) != choices[g]]
    losses = [t for t in config["distiller"]["losses"] if t not in base.distiller.losses]
    added = [t for t in losses if t in known["loss"]]
    return [
        *named,
        *(f"{group}={choices[group]}" for group in sorted(others, reverse=True)),
        *([f"loss=[{','.join(added)}]"] if added else []),
    ]


@functools.cache  # composing is slow
def _composed(chosen: tuple[str, ...]) -> DictConfig:
    return compose(chosen, complete=False)


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _differences(before: Any, after: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with the values that they need; a part of another kind is set as a whole."""
    for key in [*after, *(k for k in before if k not in after)]:
        path = f"{prefix}{key}"
        old, new = before.get(key, ABSENT), after.get(key, ABSENT)
        if path in ("choices", *ELSEWHERE) or repr(old) == repr(new):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping) and _kind(old) == _kind(new):
            yield from _differences(old, new, path + ".")
        else:
            yield path, new


def _kind(node: Mapping[str, Any]) -> Any:
    return node.get("_target_")


def _derived(config: DictConfig, path: list[str]) -> bool:
    """Whether the value comes from another place, by an interpolation on the way to it."""
    node: Any = config
    for part in path:
        if not OmegaConf.is_dict(node) or part not in node:
            return False
        if OmegaConf.is_interpolation(node, part):
            return True
        node = node[part]
    return False


def _apply(config: DictConfig, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = OmegaConf.select(config, ".".join(parents)) if parents else config
    if value is ABSENT:
        node.pop(last)
    else:
        node[last] = value


def _override(base: DictConfig, key: str, value: Any) -> str:
    if value is ABSENT:
        return f"~{key}"
    if isinstance(value, str) and is_path(annotation_of(base, key)):
        return path_setting(key, value)
    entry = key.split(".")[-2:-1] == ["losses"]
    return f"{'+' if entry else ''}{key}={_text(value)}"


def _text(value: Any) -> str:
    """A value in the grammar of overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_text(k)}:{_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if not isinstance(value, str):
        return "null" if value is None else str(value).lower()
    if re.fullmatch(r"[\w./@+-]+", value) and _reads(value) == value:
        return value
    return quote(value)


def _reads(text: str) -> Any:
    """What the grammar makes of a bare value."""
    try:
        return OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return None
