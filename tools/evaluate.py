"""Measure a network on data: accuracy, agreement with a teacher and calibration, class by class.

python -m tools.evaluate RUN data=mnist
python -m tools.evaluate RUN data=npz data.path=new.npz teacher=resnet20 teacher.checkpoint=big.pth
python -m tools.evaluate FILE student=resnet20 data=cifar10 student.mean=[...] student.std=[...]
python -m tools.evaluate FILE student=timm student.model.name=vit_tiny_patch16_224 data=cifar10

RUN is a run directory, or the student.safetensors in one. For any other FILE (ours, torchvision's,
timm's), student= names its architecture, and student.KEY says about it what teacher.KEY of train.py
says about a teacher's file. The test split is measured. config_path=DIR adds your own choices,
and the modules in DIR may build a run's network; trust=[MODULE] allows others.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from core.files import write_whole
from core.runtime import Runtime
from data.dataset import Dataset
from engine.choices import KEY, groups, own_folder
from engine.config import ConfigError, compose, plain
from engine.evaluate import Evaluator, Measured
from engine.ownership import CONFIG, mapping
from engine.parts import build_dataset
from engine.student import FILE, student_of
from engine.teacher_file import load_teacher
from engine.trust import sort_trust
from engine.user_parts import user_folder
from engine.warm_start import reworded
from models.checkpoint import before_transform
from models.classifier import Classifier
from models.pretrained import freeze
from tools.figures import in_lines


def evaluate(subject: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Measure a network on the test split of the data that the overrides name.

    Args:
        subject: a run directory or a file of weights.
        overrides: of ``train.py``, and what :func:`engine.trust.sort_trust` reads if code of
            another package builds the run's student.

    Returns:
        The content of :class:`engine.evaluate.Measured`, with class names, and what was measured
        on what; None for what could not be measured.

    Raises:
        ValueError: for whatever a user can mend.
    """
    trust, words = sort_trust(overrides)
    mine, teachers, common = _sort(words)
    if not subject.exists():
        raise ValueError(f"{subject} does not exist: give a run directory or a file of weights")
    config = _composed([*common, *teachers], subject)
    if teachers and not config.teacher.checkpoint:
        raise ValueError("which teacher? teacher.checkpoint=FILE, and teacher=NAME says what it is")
    runtime = Runtime(config.device, config.precision, seed=config.seed)
    if runtime.world_size > 1:
        raise ValueError("an evaluation is one process: start it without torchrun")
    with reworded("student", "network"):
        said = _said_of(subject, mine, common)
        dataset = build_dataset(said, runtime)
        student = _student(subject, mine, said, trust, dataset, runtime)
    _compare_names(student, dataset, subject)
    _compare_splits(subject, plain(config))
    teacher = None
    if teachers:
        teacher = load_teacher(plain(config), config.teacher.checkpoint, dataset, runtime)
    split = dataset.open("test")
    # The teacher answers here, in the range that it was just loaded with; the student later.
    evaluator = Evaluator(student, teacher, split, runtime, config.batch_size)
    dataset.adapt(student.takes, len(dataset.classes))
    return _described(evaluator.measure(), subject, student, teacher, dataset, config)


def _composed(words: list[str], subject: Path) -> DictConfig:
    """The configuration that says what the network is measured on, and beside which teacher."""
    try:
        return compose(words)
    except ConfigError as error:
        run = subject if subject.is_dir() else subject.parent
        known = any(word.startswith(f"{KEY}=") for word in words)
        if known or not mapping(run / CONFIG).get(KEY):
            raise
        raise ValueError(f"{error}. This run has parts of a folder: add {KEY}=DIR") from error


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("network", type=Path, help="a run directory, or a file of weights")
    parser.add_argument("overrides", nargs="*", help="data=..., and as above", metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything to this file")
    given = parser.parse_intermixed_args(arguments)
    try:
        _check_free(given.json)
        found = evaluate(given.network, given.overrides)
        print(in_lines(found))
        if given.json:
            write_whole(given.json, json.dumps(found, allow_nan=False) + "\n")
            print(f"\nall of it: {given.json}")
    except torch.OutOfMemoryError as error:
        print(f"error: {error}\nWith less memory, give a smaller batch_size=...", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _check_free(out: Path | None) -> None:
    """Check before minutes of work that the output can be written."""
    if out and (out.exists() or out.is_symlink()):
        raise ValueError(f"{out} exists: remove it, or give another name")
    if out and not out.parent.is_dir():
        raise ValueError(f"{out.parent} is not a folder: make it, or give another name")


def _sort(overrides: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The overrides of the network, of the teacher and of both.

    Raises:
        ValueError: if none names data.
    """
    mine: list[str] = []
    teachers: list[str] = []
    common: list[str] = []
    if not any(word.startswith("data=") for word in overrides):
        known = groups(user_folder(overrides, []))["data"]
        raise ValueError(f"on which data? data=NAME, one of {', '.join(known)}")
    for word in overrides:
        role = word.partition("=")[0].lstrip("+~").partition(".")[0]
        if role == "student":
            mine.append(word)
        else:
            (teachers if role == "teacher" else common).append(word)
    return mine, teachers, common


def _said_of(subject: Path, mine: list[str], common: list[str]) -> dict[str, Any]:
    """Settings with the network under test in the teacher's place.

    Its file may need the same settings as a teacher's file, and if the data has no labels, the file
    names its classes.
    """
    renamed = [re.sub(r"^([+~]?)student\b", r"\1teacher", word) for word in mine]
    settings = plain(compose([*common, *renamed]))
    file = subject / FILE if subject.is_dir() else subject
    settings["teacher"]["checkpoint"] = str(file)
    return settings


def _student(
    subject: Path,
    mine: list[str],
    said: dict[str, Any],
    trust: list[str],
    dataset: Dataset,
    runtime: Runtime,
) -> Classifier:
    """The network under test, frozen, on the device and checked against the data."""
    left = subject.name == FILE and (subject.parent / "config.yaml").is_file()
    run = subject if subject.is_dir() else subject.parent if left and not mine else None
    if run is None:
        if not any(word.startswith("student=") for word in mine):
            raise ValueError(
                f"{subject} is not in a run directory: say what it is with student=NAME, one of "
                f"{', '.join(groups(own_folder(said))['student'])}"
            )
        silent = not any(word.startswith("student.transform=") for word in mine)
        if before_transform(subject) is not None and silent:
            raise ValueError(
                f"{subject} is of a network that sees its inputs through a transform: add "
                "student.transform=NAME, or student.transform=null if the data are such already"
            )
        return load_teacher(said, str(subject), dataset, runtime)
    if mine:
        raise ValueError(f"{subject} itself says what its student is: leave out {mine[0]}")
    student = student_of(run, trust)
    dataset.adapt(student.takes, len(student.classes))
    runtime.prepare(freeze(student))
    return student


def _compare_names(student: Classifier, dataset: Dataset, subject: Path) -> None:
    """Warn about different class names: the classes or their order may differ."""
    pairs = enumerate(zip(student.classes, dataset.classes, strict=True))
    differ = next(((i, ours, its) for i, (ours, its) in pairs if ours != its), None)
    if differ:
        i, ours, its = differ
        print(
            f"warning: class {i} is {ours!r} in {subject} and {its!r} in data {dataset.name}: "
            "are they the same classes, in the same order?",
            file=sys.stderr,
        )


def _compare_splits(subject: Path, settings: dict[str, Any]) -> None:
    """Warn about settings of the same data that differ from the run's: they may split it anew."""
    run = mapping((subject if subject.is_dir() else subject.parent) / CONFIG)
    if run.get("choices", {}).get("data") != settings["choices"]["data"]:
        return
    before, now = (dict(_leaves(node["data"].get("dataset"))) for node in (run, settings))
    moved = [k for k in before if k.endswith("test_path") and None not in (before[k], now.get(k))]
    for key in before:
        if key not in now or key in moved or before[key] == now[key]:
            continue
        print(
            f"warning: the run had data.dataset.{key}={before[key]}, and here it is {now[key]}: "
            "if that decides which inputs are the test split, training may have seen some of them",
            file=sys.stderr,
        )


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a node says, by dotted keys, but for where files are and what moves no test input."""
    for key, value in (node or {}).items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        elif key not in ("path", "root", "size", "val_fraction"):
            yield f"{path}{key}", value


def _described(
    measured: Measured,
    subject: Path,
    student: Classifier,
    teacher: Classifier | None,
    dataset: Dataset,
    config: DictConfig,
) -> dict[str, Any]:
    found = asdict(measured)
    named = zip(dataset.classes, found["classes"], strict=True)
    found["classes"] = [{"name": name, **row} for name, row in named]
    return {
        "schema": 1,
        "network": str(subject),
        "architecture": type(student.module).__name__,
        "parameters": student.parameter_count(),
        "teacher": teacher and str(config.teacher.checkpoint),
        "data": config.choices.data,
        **found,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
