"""The command line: group choices for Hydra, and keys with their values."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from core.annotations import shorten
from core.check import describe_unknown

OPTIONAL = ("experiment", "loss")  # groups from which no choice is needed

# One folder of models serves both roles.
ALIASES = {"teacher": "model@teacher.model", "student": "model@student.model"}

FLAGS = "--help and --show"
LONGEST = 10_000  # characters that Hydra's grammar reads in seconds; it needs their square
_SETTING = re.compile(r"(~|\+{0,2})([^\s=~+]+)(?:=(.*))?", re.DOTALL)


@dataclass
class Setting:
    """One key of the command line.

    Args:
        key: dotted.
        mark: what stands before it: "~" removes it, "+" and "++" may add it.
        text: what follows "=", as the shell gave it, for keys that hold paths.
        value: the same as Hydra's grammar reads it, for all others.
        mistake: why the grammar cannot read it, if it cannot.
    """

    key: str
    mark: str
    text: str
    value: Any = None
    mistake: str = ""

    @property
    def deletes(self) -> bool:
        return self.mark == "~"

    @property
    def adds(self) -> bool:
        return self.mark.startswith("+")

    def path(self) -> str | None:
        """The text as a path: only null, ~ and quotes around the whole have a meaning.

        Raises:
            ValueError: for empty text, such as that of a shell variable that is not set.
        """
        if self.text == "null":
            return None
        quote = self.text[:1]
        if quote in "'\"" and len(self.text) > 1 and self.text.find(quote, 1) == len(self.text) - 1:
            return self.text[1:-1]
        if not self.text:
            raise ValueError("the path is empty: give one, or null for none")
        return os.path.expanduser(self.text)


def sort_overrides(
    arguments: Sequence[str], known: dict[str, list[str]], mistakes: list[str]
) -> tuple[list[str], list[Setting]]:
    """Split overrides into group choices, in Hydra's syntax, and settings of keys, for us.

    Args:
        known: the choices of every group.
        mistakes: gains a line for each that is wrong.
    """
    chosen: list[str] = []
    settings: list[Setting] = []
    for argument in arguments:
        match = _SETTING.fullmatch(argument)
        if argument.startswith("-"):
            mistakes.append(
                f"no flag {shorten(argument)}: flags are {FLAGS}; settings are written key=value"
            )
        elif not match or (match[3] is None and match[1] != "~"):
            mistakes.append(f"cannot read {shorten(argument)}: write key=value, such as seed=1")
        elif not _is_text(argument):
            mistakes.append(f"{shorten(argument)} is not UTF-8 text: rename what it names")
        else:
            override, mistake = _parse(argument, match)
            if match[2] in known:
                _choose(override, mistake, known, chosen, mistakes)
            else:
                value = override.value() if override and not mistake else None
                settings.append(Setting(match[2], match[1], match[3] or "", value, mistake))
    added = {name for c in chosen if c.startswith("loss=") for name in re.findall(r"\w+", c[5:])}
    for setting in settings:  # keys are set once the groups are composed, whatever the order
        name = setting.key.removeprefix("distiller.losses.")
        if setting.deletes and name in added:
            mistakes.append(f"~{setting.key} removes what loss={name} adds: leave one of them out")
    return chosen, settings


def named(arguments: Sequence[str], key: str) -> list[Setting]:
    """The settings of one key that holds a path, before the groups are known."""
    found = [m for argument in arguments if (m := _SETTING.fullmatch(argument)) and m[2] == key]
    return [Setting(key, m[1], m[3]) for m in found if m[1] != "~" and m[3] is not None]


def quote(text: str) -> str:
    """Text as a quoted value of Hydra's grammar."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"\\+$", r"\g<0>\g<0>", text)) + "'"


def path_setting(key: str, value: str) -> str:
    """A setting that gives a path: verbatim, but for one that looks like something else."""
    written = (value, f"'{value}'", f'"{value}"')
    return f"{key}={next((w for w in written if Setting('', '', w).path() == value), value)}"


def _is_text(argument: str) -> bool:
    """Whether it can be written to a file; bytes that are not UTF-8 come as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in argument)


def _parse(argument: str, match: re.Match[str]) -> tuple[Override | None, str]:
    """An argument as Hydra's grammar reads it, and a line if it cannot be used."""
    if len(argument) > LONGEST:
        return None, f"{shorten(argument)} is too long: write it in a file, configs/experiment/"
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return None, (
            f"cannot read {shorten(argument)}: write key=value, such as seed=1; quote text that "
            f"holds more than letters: {_quoted(match[2], match[3] or '')}"
        )
    except RecursionError:
        return None, f"cannot read {shorten(argument)}: its brackets are nested too deep"
    if override.is_sweep_override():
        return override, (
            f"{shorten(argument)} names several values: start one run for each, or quote the "
            f"text: {_quoted(match[2], match[3])}"
        )
    return override, ""


def _quoted(key: str, text: str) -> str:
    """How to give a text so that neither the shell nor Hydra's grammar takes it apart."""
    if len(text) > 60:
        return f"'{key}=\"TEXT\"'"
    inner = text.replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{key}="{inner}"')


def _choose(
    override: Override | None,
    mistake: str,
    known: dict[str, list[str]],
    chosen: list[str],
    mistakes: list[str],
) -> None:
    """Add the override in Hydra's syntax; choices that do not exist are corrected or left out."""
    if override is None or mistake:
        return mistakes.append(mistake)
    group, value = override.key_or_group, override.value()
    if value is None and group in OPTIONAL:
        return None
    several = group == "loss"
    choices = []
    for name in value if several and isinstance(value, list) else [value]:
        choice = "null" if name is None else str(name)
        if choice not in known[group]:
            line = f"{group}={shorten(choice, str)}: {describe_unknown(choice, known[group])}"
            mistakes.append(line)
            # go on with what was probably meant, so that no key is blamed for the group
            near = difflib.get_close_matches(choice, known[group], 1)
            choice = near[0] if near else ""
        choices.append(choice)
    if choices := [c for c in choices if c]:
        written = f"[{','.join(choices)}]" if several else choices[0]
        chosen.append(f"{ALIASES.get(group, group)}={written}")
    return None
