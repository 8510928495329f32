"""The configuration: composition from YAML groups, and one report of all mistakes."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from yaml import YAMLError

from engine.annotations import check_type, hints_of, is_path, shorten
from engine.check import check_node, describe_unknown, is_target
from engine.overrides import ALIASES, Setting, sort_overrides
from engine.schema import LEAST, Config, Node, TermConfig

ROOT = Path(__file__).resolve().parents[1] / "configs"


class ConfigError(ValueError):
    """All mistakes of a configuration, one per line."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = list(dict.fromkeys(mistakes))
        super().__init__("\n".join(self.mistakes))


def groups() -> dict[str, list[str]]:
    """The choices of every configuration group, by group."""
    found = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in ROOT.iterdir() if p.is_dir()}
    models = found.pop("model", [])
    return {**found, "teacher": models, "student": models}


def compose(arguments: Sequence[str], complete: bool = True) -> DictConfig:
    """Compose the configuration that the command-line overrides describe.

    Group choices are composed by Hydra; keys are then set and the result is held against the
    schema and against the signature of every ``_target_``.

    Args:
        arguments: overrides.
        complete: whether it is held against them; false where keys without a default are to come.

    Raises:
        ConfigError: naming every mistake at once, each with what was probably meant.
    """
    mistakes: list[str] = []
    chosen, values = sort_overrides(arguments, groups(), mistakes)
    try:
        config = _hydra("train", overrides=chosen, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError([*mistakes, _one_line(error)]) from error
    choices = OmegaConf.to_container(config.hydra.runtime.choices)
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    config.choices = _readable(choices)  # type: ignore[arg-type]
    for f in fields(Config):
        if f.name not in config and f.default is not MISSING:
            config[f.name] = f.default
    own_recipe(config)
    for setting in values:
        _set(config, setting, mistakes)
    _fold_taps(config)
    if complete:
        _check(config, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    for role in ALIASES:
        config.choices[role] = _name(config.choices[role], config[role].model)
    return config


def _hydra(file: str, **options: Any) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT), version_base="1.3", job_name="train"):
        return hydra_compose(file, **options)


def _name(choice: str, model: DictConfig) -> str:
    """The choice, with what differs from its file: ``wrn(depth=22, width=2)``."""
    written, ours = _written(ROOT, choice), _leaves(model)
    changed = [f"{key}={value}" for key, value in ours.items() if written.get(key) != value]
    changed += [f"~{key}" for key in written if key not in ours]
    return f"{choice}({', '.join(changed)})" if changed else choice


@functools.cache  # composing is slow
def _written(root: Path, choice: str) -> dict[str, Any]:
    """The leaves of a model's file under ``root``, with those that it starts from."""
    return _leaves(_hydra(f"model/{choice}").model)


def _leaves(node: DictConfig) -> dict[str, Any]:
    """What a network is built from, by dotted key; how it is trained is no part of it."""
    found: dict[str, Any] = {}
    for path in _paths(node):
        value = OmegaConf.select(node, path)
        if not OmegaConf.is_dict(value) and not path.startswith("_training_."):
            found[path] = value
    return found


def own_recipe(config: DictConfig) -> None:
    """A run on real data takes the student's own recipe, ``_training_``, before the data set's."""
    settings = config.student.model.get("_training_")
    if settings and not config.data_free:
        config.update(settings)


def _readable(choices: dict[str, Any]) -> dict[str, Any]:
    names = {group: role for role, group in ALIASES.items()}
    return {names.get(k, k): v for k, v in choices.items() if not k.startswith("hydra/") and v}


def _set(config: DictConfig, setting: Setting, mistakes: list[str]) -> None:
    """Set one key that the schema, the composed files or a target's signature knows."""
    *parents, last = (key := setting.key).split(".")
    node: Any = config
    for part in parents:
        if not OmegaConf.is_dict(node) or part not in node or OmegaConf.is_missing(node, part):
            return mistakes.append(_unknown_key(config, key, node, part))
        try:
            node = node[part]
        except OmegaConfBaseException as error:
            return mistakes.append(f"{key}: {_one_line(error)}")
    if not OmegaConf.is_dict(node):
        return mistakes.append(_unknown_key(config, key, {}, last))
    entry = parents[-2:-1] == ["terms"] and last in get_type_hints(TermConfig)
    addable = is_target(node) or entry or (parents[-1:] == ["terms"] and setting.adds)
    if last not in node and (setting.deletes or not addable):
        return mistakes.append(_unknown_key(config, key, node, last))
    if not setting.deletes:
        _assign(node, last, setting, _annotation(node, parents, last), mistakes)
    elif is_target(node) or entry or parents[-1:] == ["terms"]:
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
        return mistakes.append(f"{setting.key}: {_one_line(error)}")
    except RecursionError:
        return mistakes.append(f"{setting.key}={shorten(setting.text, str)} is nested too deep")


def _annotation(node: DictConfig, parents: list[str], last: str) -> Any:
    """What the target that has this argument, or the schema, says of a key."""
    if is_target(node):
        try:
            return hints_of(resolve_name(node._target_)).get(last)
        except (Exception, SystemExit):  # whose name is a mistake that the check will report
            return None
    schema: Any = Config
    for part in parents:
        schema = _section(get_type_hints(schema).get(part)) if schema else None
    return get_type_hints(schema).get(last) if schema else None


def _unknown_key(config: DictConfig, key: str, node: Any, part: str) -> str:
    siblings = [str(k) for k in node] if OmegaConf.is_dict(node) else []
    paths = [*_paths(config), *groups()]
    near = difflib.get_close_matches(key, paths, 1, 0.7)
    if near and not difflib.get_close_matches(part, siblings, 1):
        return f"{key}: no such key; did you mean {near[0]}?"
    return f"{key}: {describe_unknown(part, siblings)}"


def _paths(node: Any, prefix: str = "") -> list[str]:
    found = []
    for key in node:
        found.append(path := f"{prefix}{key}")
        child = node._get_node(key)
        if OmegaConf.is_dict(child) and not child._is_none() and not child._is_interpolation():
            found += _paths(child, path + ".")
    return found


def _fold_taps(config: DictConfig) -> None:
    """An entry's ``taps`` are an argument of its term."""
    for objective in ("distiller", "synthesis"):
        terms = OmegaConf.select(config, f"{objective}.terms")
        for name in list(terms) if OmegaConf.is_dict(terms) else ():
            entry = terms._get_node(name)
            if OmegaConf.is_dict(entry) and is_target(entry.get("term")) and "taps" in entry:
                entry.term.taps = entry.pop("taps")


def _check(config: DictConfig, mistakes: list[str]) -> None:
    """Hold the composed configuration against the schema, leaf by leaf."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        mistakes.append(_one_line(error))
        return
    except RecursionError:
        mistakes.append("the configuration is nested too deep")
        return
    _check_fields(plain, Config, "", mistakes)
    for key, least in LEAST.items():
        value = plain.get(key)  # type: ignore[union-attr]
        if isinstance(value, (int, float)) and value < least:
            mistakes.append(f"{key}={value} should be at least {least}")


def _check_fields(node: Any, schema: Any, prefix: str, mistakes: list[str]) -> None:
    if not isinstance(node, dict):
        mistakes.append(f"{prefix[:-1]} is a group of keys, not {shorten(node)}")
        return
    hints = get_type_hints(schema)
    for key, value in node.items():
        path = f"{prefix}{key}"
        if key not in hints:
            mistakes.append(f"{path}: {describe_unknown(key, list(hints))}")
        elif section := _section(hints[key]):
            if section is TermConfig and isinstance(value, dict):
                for name, entry in value.items():
                    _check_fields(entry, TermConfig, f"{path}.{name}.", mistakes)
            elif value is not None or type(None) not in get_args(hints[key]):
                _check_fields(value, section, path + ".", mistakes)
        elif Node in (hint := hints[key], *get_args(hint)) and not is_target(value):
            if value is not None or hint is Node:
                mistakes.append(
                    f"{path} builds a part: a group with a _target_, not {shorten(value)}"
                )
        else:
            mistakes += check_type(value, hints[key], path)
            mistakes += check_node(value, path)
    for f in fields(schema):
        required = f.default is MISSING and f.default_factory is MISSING
        if f.name not in node and required:
            mistakes.append(f"{prefix}{f.name} is not set by any configuration file")


def _section(annotation: Any) -> Any:
    """The dataclass within an annotation such as ``X``, ``X | None`` or ``dict[str, X]``."""
    return next((a for a in (annotation, *get_args(annotation)) if is_dataclass(a)), None)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (GrammarParseError, InterpolationResolutionError)):
        text += " (quote ${ that is text: '\\${')"
    return text
