"""One key of a configuration: setting it, its allowed values, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import is_dataclass
from pkgutil import resolve_name
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from core.annotations import hints_of, is_path, shorten
from core.check import MOVED, RENAMED, describe_unknown, is_target
from engine.overrides import Setting
from engine.schema import Config, OtherStudentConfig, OtherTeacherConfig, TransferConfig

# Networks by names that the user chooses, of which not every key has to be written.
NETWORKS = {"students": OtherStudentConfig, "teachers": OtherTeacherConfig}
# Groups of names that the user chooses.
NAMED = {"students", "teachers", "views", "turns", "metrics"}


def set_key(
    config: DictConfig, setting: Setting, mistakes: list[str], groups: Iterable[str]
) -> None:
    """Set one key that the schema, the composed files or a target's signature knows.

    Args:
        mistakes: gains a line where the key or its value is wrong.
        groups: names that are not keys, but may have been meant.
    """
    *parents, last = (key := setting.key).split(".")
    node: Any = config
    for part in parents:
        if not OmegaConf.is_dict(node) or part not in node or OmegaConf.is_missing(node, part):
            return mistakes.append(_unknown_key(config, key, node, part, groups))
        try:
            node = node[part]
        except OmegaConfBaseException as error:
            return mistakes.append(f"{key}: {one_line(error)}")
    if not OmegaConf.is_dict(node):
        return mistakes.append(_unknown_key(config, key, {}, last, groups))
    named = parents[-1:] in (["losses"], ["streams"])
    group = len(parents) == 1 and parents[0] in NAMED
    entry = parents[-2:-1] == ["losses"] and last in get_type_hints(TransferConfig)
    network = len(parents) == 2 and last in get_type_hints(NETWORKS.get(parents[0], object))
    known = is_target(node) or entry or group or network
    addable = known or (named and setting.adds)
    there = last in set(node)  # also if its value is still to be given
    if not there and (setting.deletes or not addable):
        return mistakes.append(_unknown_key(config, key, node, last, groups))
    if not setting.deletes:
        _assign(node, last, setting, _annotation(node, parents, last), mistakes)
    elif known or named:
        node.pop(last)
    else:
        mistakes.append(f"~{key}: every run has this key; set another value")
    return None


def _assign(
    node: DictConfig, last: str, setting: Setting, annotation: Any, mistakes: list[str]
) -> None:
    if setting.mistake and not is_path(annotation):
        return mistakes.append(setting.mistake)
    try:
        node[last] = setting.path() if is_path(annotation) else setting.value
    except (OmegaConfBaseException, ValueError) as error:
        return mistakes.append(f"{setting.key}: {one_line(error)}")
    except RecursionError:
        return mistakes.append(f"{setting.key}={shorten(setting.text, str)} is nested too deep")


def annotation_of(config: DictConfig, key: str) -> Any:
    """What the schema, or the target whose argument it is, says of a dotted key."""
    *parents, last = key.split(".")
    node = OmegaConf.select(config, ".".join(parents)) if parents else config
    return _annotation(node, parents, last)


def _annotation(node: DictConfig, parents: list[str], last: str) -> Any:
    """What the target that has this argument, or the schema, says of a key."""
    if is_target(node):
        try:
            return hints_of(resolve_name(node._target_)).get(last)
        except (Exception, SystemExit):  # whose name is a mistake that the check will report
            return None
    if len(parents) == 2 and parents[0] in NETWORKS:
        return get_type_hints(NETWORKS[parents[0]]).get(last)
    schema: Any = Config
    for part in parents:
        schema = section_of(get_type_hints(schema).get(part)) if schema else None
    return get_type_hints(schema).get(last) if schema else None


def _unknown_key(config: DictConfig, key: str, node: Any, part: str, groups: Iterable[str]) -> str:
    now = ".".join(RENAMED.get(name, name) for name in key.split("."))
    for before, after in MOVED.items():
        if f"{key}.".startswith(f"{before}."):
            now = after + key.removeprefix(before)
    if now != key:
        return f"{key}: no such key; it is called {now} now"
    siblings = [str(k) for k in node] if OmegaConf.is_dict(node) else []
    paths = [*paths_of(config), *groups]
    near = difflib.get_close_matches(key, paths, 1, 0.7)
    if near and not difflib.get_close_matches(part, siblings, 1):
        return f"{key}: no such key; did you mean {near[0]}?"
    return f"{key}: {describe_unknown(part, siblings)}"


def paths_of(node: Any, prefix: str = "") -> list[str]:
    found = []
    for key in node:
        found.append(path := f"{prefix}{key}")
        child = node._get_node(key)
        if OmegaConf.is_dict(child) and not child._is_none() and not child._is_interpolation():
            found += paths_of(child, path + ".")
    return found


def section_of(annotation: Any) -> Any:
    """The dataclass within an annotation such as ``X``, ``X | None`` or ``dict[str, X]``."""
    return next((a for a in (annotation, *get_args(annotation)) if is_dataclass(a)), None)


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, RecursionError):
        return "a file of these choices starts from itself"
    if isinstance(error, (GrammarParseError, InterpolationResolutionError)):
        text += " (quote ${ that is text: '\\${')"
    return text
