"""What a run is about to do, in a few lines, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf

from core.build import build
from core.check import parameters_of
from data.refused import refusing
from data.spec import Expected
from distillers.edges import resolve_taps, student_taps, teacher_taps
from engine.budget import Timing, spell
from engine.choices import groups, own_folder, written
from engine.config import plain
from engine.networks import build_objective
from engine.start import say_size
from generators.base import SynthesisLoss
from models.classifier import Classifier

EXACT = 4  # digits of a mean or a standard deviation that are shown


def plan(
    settings: Mapping[str, Any],
    known: Expected,
    teacher: Classifier,
    available: Mapping[str, Any],
    timing: Timing,
    measured: str,
) -> str:
    """The lines that are printed.

    Args:
        settings: of the run, with its final number of steps.
        known: where what the teacher expects was read.
        teacher: loaded.
        available: what parts may name as arguments, the untrained student among them.
        timing: of a few real steps.
        measured: what will be measured at the end, and on what.
    """
    choices, steps, pace = settings["choices"], settings["steps"], timing.pace
    count = len(teacher.batchnorms())
    fit, unfit = methods_for(teacher, settings["generator"], available, own_folder(settings))
    others = [name for name in fit if name != choices["method"]]
    amount = "1 step takes" if steps == 1 else f"{steps:,} steps take"
    rows = [
        ("teacher", f"{choices['teacher']}: {size(teacher)}, {count or 'no'} BatchNorm layers"),
        ("input", _input(teacher, known)),
        ("classes", f"{len(teacher.classes)}{known.origin('classes')}: {_some(teacher.classes)}"),
        ("student", f"{choices['student']}: {size(available['student'])}"),
        ("method", f"{choices['method']}; these apply as well: {' '.join(others)}"),
        *((("", f"not {' '.join(names)}: {why}") for why, names in unfit.items())),
        ("time", f"{_pace(timing)}; {amount} about {spell(timing.seconds(steps))}"),
        ("memory", f"{pace.memory / 2**30:.1f} GiB at the peak so far"),
        ("measured", measured),
    ]
    return "\n".join(f"  {name:<9} {text}" for name, text in rows)


def methods_for(
    teacher: Classifier,
    generator: Mapping[str, Any],
    available: Mapping[str, Any],
    own: Path | None = None,
) -> tuple[list[str], dict[str, list[str]]]:
    """The data-free methods that fit both networks, and the others by the reason against them.

    Args:
        generator: the node of the run's generator, of which losses may read a size.
        available: what parts may name as arguments; see :func:`engine.parts.offered`.
        own: a folder of the user's, whose methods are looked at too.
    """
    fit: list[str] = []
    unfit: dict[str, list[str]] = {}
    refused = refusing(teacher.takes.modality)
    for name in groups(own)["method"]:
        method: Any = OmegaConf.merge({"generator": generator}, written("method", name, own))
        if not method.get("data_free"):
            continue
        if name in refused:
            unfit.setdefault(f"it does not take {teacher.takes.kind.plural}", []).append(name)
            continue
        try:
            _check_synthesis(method.get("synthesis"), teacher, available)
            _check_transfer(plain(method.distiller), teacher, available)
            fit.append(name)
        except ValueError as error:
            unfit.setdefault(_reason(error), []).append(name)
        except Exception:
            if name in groups()["method"]:
                raise
            unfit.setdefault("there is a mistake in its file", []).append(name)
    return fit, unfit


def _check_synthesis(
    node: DictConfig | None, teacher: Classifier, available: Mapping[str, Any]
) -> None:
    """Check that the teacher has what the method's synthesis losses read.

    Raises:
        ValueError: if it does not.
    """
    entries = plain(node)["losses"].values() if node else ()
    losses = [_seen(entry["loss"], available) for entry in entries]
    if any(loss.needs_statistics for loss in losses) and not teacher.batchnorms():
        raise ValueError("it inverts BatchNorm statistics, and the teacher has none")
    teacher.frozen([tap for loss in losses for tap in loss.teacher_taps])


def _check_transfer(
    node: Mapping[str, Any], teacher: Classifier, available: Mapping[str, Any]
) -> None:
    """Check that both networks have what the method's transfer losses read.

    Raises:
        ValueError: if one does not.
    """
    student = available["student"]
    objective = build_objective(dict(node), "distiller", **available)
    resolve_taps(objective, student.module, teacher)
    student.frozen(student_taps(objective))
    teacher.frozen(teacher_taps(objective))


def _reason(error: ValueError) -> str:
    """What an error says, without the part that it names first and the advice at its end."""
    said = str(error).removeprefix("synthesis ")
    said = said.partition("): ")[2] if said.startswith("(") else said
    return said.partition(":")[0].removesuffix("; it has")


def _seen(node: Mapping[str, Any], available: Mapping[str, Any]) -> Any:
    """A loss as far as it says what it reads: built only where the teacher decides that."""
    target = resolve_name(node["_target_"])
    if parameters_of(target)[0].keys() & {"teacher", "taps", "tap"}:
        return build(node, SynthesisLoss, "synthesis", **available)
    return target


def size(network: Classifier) -> str:
    return say_size(network.parameter_count())


def _input(teacher: Classifier, known: Expected) -> str:
    spec = teacher.spec
    low, high = spec.range
    return ", ".join(
        [
            f"{'x'.join(map(str, spec.shape))}{known.origin('shape')}",
            f"values {low:g} to {high:g}{known.origin('range')}",
            f"mean {_numbers(spec.mean)}{known.origin('mean')}",
            f"std {_numbers(spec.std)}{known.origin('std')}",
        ]
    )


def _pace(timing: Timing) -> str:
    pace, rounds = timing.pace, timing.pace.update > 0
    text = f"{_seconds(pace.step)} a step"
    if rounds:
        text += f", {_seconds(pace.update)} an iteration of synthesis"
    return f"{text}, {_seconds(pace.evaluation)} an evaluation"


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.{EXACT}g}" for value in values)


def _some(names: tuple[str, ...], most: int = 6) -> str:
    return " ".join(names[:most]) + (" ..." if len(names) > most else "")
