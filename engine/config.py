"""The configuration: composition from YAML groups, and one report of all mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from core.annotations import check_type, shorten
from core.check import check_node, describe_unknown, is_target
from engine.choices import KEY, TRANSFORM, composed, files, groups, own_folder, written
from engine.keys import one_line, paths_of, section_of, set_key
from engine.overrides import ALIASES, Setting, sort_overrides
from engine.schema import (
    LEAST,
    MOST,
    Config,
    DataConfig,
    Node,
    SynthesisConfig,
    TrainingConfig,
    TurnConfig,
)
from engine.start import missing
from engine.user_parts import user_folder

# Where the files of a group belong that say so in their first line
PACKAGES = {"method": "_global_", "experiment": "_global_", "loss": "distiller.losses"}

# Keys of what may be a name from a folder, until that is read.
NAMED = re.compile(r"\.transform\.|^(students|teachers)\.\w+\.model\.")


class ConfigError(ValueError):
    """All mistakes of a configuration, one per line."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = list(dict.fromkeys(mistakes))
        super().__init__("\n".join(self.mistakes))


def compose(arguments: Sequence[str], complete: bool = True) -> DictConfig:
    """Compose the configuration that the command-line overrides describe.

    Group choices are composed by Hydra; keys are then set, and the result is checked against the
    schema and the signature of every ``_target_``.

    Args:
        arguments: overrides.
        complete: whether to check it; false if keys without a default are still to be set.

    Raises:
        ConfigError: naming every mistake at once, each with what was probably meant.
        ValueError: for a user's folder that cannot be one.
    """
    mistakes: list[str] = []
    own = user_folder(arguments, mistakes)
    chosen, values = sort_overrides(arguments, groups(own), mistakes)
    try:
        config = composed(chosen, own)
    except (HydraException, OmegaConfBaseException, YAMLError, RecursionError) as error:
        raise ConfigError([*mistakes, one_line(error)]) from error
    choices = OmegaConf.to_container(config.hydra.runtime.choices)
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    config.choices = _readable(choices)  # type: ignore[arg-type]
    if misplaced := list(_misplaced(config, own)):  # much is missing then
        raise ConfigError([*mistakes, *misplaced])
    if config.pop(KEY) is not None:
        mistakes.append(f"{KEY} is read from the command line alone, not from a file")
    _settle(config, values, own, mistakes)
    if complete:
        if asked := _missing(config, arguments):
            raise ConfigError([*mistakes, asked])
        _check(config, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    for role in ALIASES:
        config.choices[role] = _name(config.choices[role], config[role].model, own)
    return config


def _misplaced(config: DictConfig, own: Path | None) -> Iterator[str]:
    """Files whose keys have come under their group's name, and not to where the group belongs."""
    for group, package in PACKAGES.items():
        found = set(config[group]) if OmegaConf.is_dict(config.get(group)) else set()
        for file in files(group, own) if found else ():
            first, line = file.read_text().partition("\n")[0].strip(), f"# @package {package}"
            chosen = config.choices.get(group, file.stem) == file.stem  # Hydra names no losses
            if chosen and first != line and found & set(written(group, file.stem, own)):
                yield f"{file}: its first line has to be {line}"


def _settle(
    config: DictConfig, values: Sequence[Setting], own: Path | None, mistakes: list[str]
) -> None:
    """Fill in defaults, and set the keys of the command line over them."""
    _fill(config, Config)
    _fill(config.data, DataConfig)  # of which a user's file gives what it needs
    _fill(config.data.get("training") if OmegaConf.is_dict(config.data) else None, TrainingConfig)
    own_recipe(config)
    _fill(config.synthesis, SynthesisConfig)
    inside = [setting for setting in values if NAMED.search(setting.key)]
    for setting in values:
        if setting not in inside:
            set_key(config, setting, mistakes, groups(own))
    typed = {setting.key for setting in values}
    if config.budget is not None and {"steps", "budget"} <= typed:
        mistakes.append("steps and budget both set the length of a run: leave one of them out")
    if "steps" in typed and "budget" not in typed:
        config.budget = None  # an experiment's
    data = OmegaConf.to_container(config.data) if OmegaConf.is_dict(config.data) else {}
    unread = isinstance(data, dict) and data.get("path") and "${data.path}" not in repr(data)
    if "data.path" in typed and unread:
        mistakes.append(
            f"data.path: data={config.choices.data} reads no file; leave it out, or choose data "
            "that has one, such as npz (see --help data)"
        )
    _fold_taps(config)
    _name_models(config, own, mistakes)
    _name_transforms(config, own, mistakes)
    for setting in inside:  # which there is now
        set_key(config, setting, mistakes, groups(own))
    for node in config.turns.values() if OmegaConf.is_dict(config.turns) else ():
        _fill(node, TurnConfig)


def _fill(node: Any, schema: Any) -> None:
    """Set the keys that a section lacks and that have a default."""
    present = set(node) if OmegaConf.is_dict(node) else set()  # with those still to be given
    for f in fields(schema) if OmegaConf.is_dict(node) else ():
        if f.name not in present and f.default is not MISSING:
            node[f.name] = f.default
        elif f.name not in present and f.default_factory is not MISSING:
            node[f.name] = f.default_factory()


def _name_models(config: DictConfig, own: Path | None, mistakes: list[str]) -> None:
    """A network among ``students`` and ``teachers`` may be named as a choice is."""
    for group in ("students", "teachers"):
        for name, node in (config[group] if OmegaConf.is_dict(config[group]) else {}).items():
            if OmegaConf.is_dict(node) and isinstance(model := node.get("model"), str):
                known = groups(own)["student"]
                if model in known:
                    node.model = written("model", model, own)
                else:
                    near = describe_unknown(model, known)
                    mistakes.append(f"{group}.{name}.model={model}: {near}")


def _name_transforms(config: DictConfig, own: Path | None, mistakes: list[str]) -> None:
    """What a network is shown may be named: ``student.transform=edges``."""
    nodes = {role: config.get(role) for role in ALIASES}
    for group in ("students", "teachers"):
        more = config[group] if OmegaConf.is_dict(config[group]) else {}
        nodes |= {f"{group}.{name}": node for name, node in more.items()}
    known = sorted(file.stem for file in files(TRANSFORM, own))
    for path, node in nodes.items():
        if OmegaConf.is_dict(node) and isinstance(name := node.get(TRANSFORM), str):
            if name in known:
                node[TRANSFORM] = written(TRANSFORM, name, own)
            else:
                mistakes.append(f"{path}.{TRANSFORM}={name}: {describe_unknown(name, known)}")
                node[TRANSFORM] = None  # so that nothing else is blamed for it


def _missing(config: DictConfig, arguments: Sequence[str]) -> str | None:
    """What a run without data still needs to be told."""
    try:
        return missing(plain(config), arguments, lambda: _networks(own_folder(config)))
    except OmegaConfBaseException:
        return None  # which the check says


def _networks(own: Path | None) -> dict[str, dict[str, Any]]:
    """The node of every network that can be chosen."""
    found = {name: written("model", name, own) for name in groups(own)["student"]}
    return {name: OmegaConf.to_container(node) for name, node in found.items()}  # type: ignore[misc]


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain containers, every interpolation resolved."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def _name(choice: str, model: DictConfig, own: Path | None) -> str:
    """The choice, with what differs from its file: ``wrn(depth=22, width=2)``."""
    file, ours = _leaves(written("model", choice, own)), _leaves(model)
    changed = [f"{key}={value}" for key, value in ours.items() if file.get(key) != value]
    changed += [f"~{key}" for key in file if key not in ours]
    return f"{choice}({', '.join(changed)})" if changed else choice


def name_of(model: DictConfig, own: Path | None) -> str:
    """The choice whose file describes this network, or the name of what builds it."""
    ours = _leaves(model)
    for name in groups(own)["student"]:
        if _leaves(written("model", name, own)) == ours:
            return name
    return str(model._target_).rpartition(".")[2]


def _leaves(node: DictConfig) -> dict[str, Any]:
    """What a network is built from, by dotted key; how it is trained is left out."""
    found: dict[str, Any] = {}
    for path in paths_of(node):
        value = OmegaConf.select(node, path, throw_on_resolution_failure=False)
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


def _fold_taps(config: DictConfig) -> None:
    """An entry's ``taps`` are an argument of its loss."""
    for objective in ("distiller", "synthesis"):
        node: Any = config._get_node(objective)
        losses: Any = node._get_node("losses") if OmegaConf.is_dict(node) else None
        for name in list(losses) if OmegaConf.is_dict(losses) else ():
            entry = losses._get_node(name)
            if OmegaConf.is_dict(entry) and is_target(entry.get("loss")) and "taps" in entry:
                entry.loss.taps = entry.pop("taps")


def _check(config: DictConfig, mistakes: list[str]) -> None:
    """Check the composed configuration against the schema, leaf by leaf."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        mistakes.append(one_line(error))
        return
    except RecursionError:
        mistakes.append("the configuration is nested too deep")
        return
    _check_fields(plain, Config, "", mistakes)
    for key, least in LEAST.items():
        value = plain.get(key)  # type: ignore[union-attr]
        if isinstance(value, (int, float)) and value < least:
            mistakes.append(f"{key}={value} should be at least {least}")
    for key, most in MOST.items():
        value = plain.get(key)  # type: ignore[union-attr]
        if isinstance(value, (int, float)) and value > most:
            mistakes.append(f"{key}={value} should be at most {most}")


def _check_fields(node: Any, schema: Any, prefix: str, mistakes: list[str]) -> None:
    if not isinstance(node, dict):
        mistakes.append(f"{prefix[:-1]} is a group of keys, not {shorten(node)}")
        return
    hints = get_type_hints(schema)
    for key, value in node.items():
        path = f"{prefix}{key}"
        if key not in hints:
            mistakes.append(f"{path}: {describe_unknown(key, list(hints))}")
        elif section := section_of(hints[key]):
            if get_origin(hints[key]) is dict and isinstance(value, dict):
                for name, entry in value.items():
                    if is_target(entry):
                        mistakes += check_node(entry, f"{path}.{name}")
                    else:
                        _check_fields(entry, section, f"{path}.{name}.", mistakes)
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
