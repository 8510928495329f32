"""Where a run's teacher comes from: a checkpoint, or a supervised run that is kept."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from core.runtime import Runtime
from data.dataset import Dataset
from engine.choices import own_folder, own_words
from engine.config import compose, name_of, own_recipe, plain
from engine.evaluate import Evaluator
from engine.moments import provisional
from engine.parts import build_parts
from engine.rehearsal import rehearse
from engine.run import RunDirectory
from engine.schema import TeacherConfig
from engine.teacher_file import blank_teacher, load_teacher
from engine.warm_start import students_of
from models.check import check_network
from models.classifier import Classifier
from models.pretrained import freeze, specification

APART = 100  # seeds, so that runs with neighbouring seeds share no teacher


def obtain_teacher(
    config: DictConfig,
    settings: dict[str, Any],
    dataset: Dataset,
    runtime: Runtime,
    train: Callable[..., Any],
    tried: bool = False,
) -> tuple[Classifier | None, str]:
    """The teacher that the configuration names, and a line that says where it came from.

    One that has no checkpoint is trained by ``method=scratch`` with its own recipe, or the data
    set's, and this run's seed, under the same run root. This run's training data stays closed.

    Args:
        config: as composed.
        settings: the same, resolved.
        dataset: of this run.
        runtime: of this run.
        train: :func:`engine.train.run`; a teacher's training is a run like any other.
        tried: whether a step with an untrained teacher has been made already.

    Raises:
        ValueError: for a checkpoint that does not fit.
    """
    if not settings["needs_teacher"]:
        _check_unread(config, settings)
        return None, ""
    if settings["teacher"]["weights"] and not settings["teacher"]["checkpoint"]:
        raise ValueError("teacher.weights names a part of teacher.checkpoint=..., which is not set")
    if path := settings["teacher"]["checkpoint"]:
        return load_teacher(settings, path, dataset, runtime), f"teacher: loaded from {path}"
    recipe = teacher_config(config)
    directory = RunDirectory(recipe, runtime)
    kept = not runtime.any(directory.result() is None)  # or ranks would go different ways
    _check_kept(directory)
    if not kept:
        if not tried:
            rehearse_blank(settings, dataset, runtime)
        if runtime.main:
            print("teacher: training {teacher} on {data}".format(**config.choices), flush=True)
    train(recipe, runtime, wait=True)
    checkpoint = directory.path / "student.safetensors"
    known = {**settings["teacher"], "checkpoint": str(checkpoint)}  # its file says what it expects
    teacher = load_teacher({**settings, "teacher": known}, str(checkpoint), dataset, runtime)
    trained = "trained earlier" if kept else "trained for this run"
    return teacher, f"teacher: {trained} with real data, kept in {checkpoint}"


def obtain_others(
    config: DictConfig,
    settings: dict[str, Any],
    dataset: Dataset,
    runtime: Runtime,
    train: Callable[..., Any],
) -> tuple[dict[str, Classifier], list[str]]:
    """The networks among ``teachers``, each loaded or trained as the first teacher is, by name.

    Returns:
        The networks, and a line on each that says where it came from.
    """
    found, lines = {}, []
    for name, node in networks_of(settings).items():
        role = as_teacher(config, node)
        network, line = obtain_teacher(role, plain(role), dataset, runtime, train, tried=True)
        assert network is not None
        found[name] = network
        lines.append(line.replace("teacher:", f"teachers.{name}:", 1))
    return found, lines


def networks_of(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes under ``teachers`` that describe a network, and not another part."""
    return {n: node for n, node in settings["teachers"].items() if "_target_" not in node}


def as_teacher(config: DictConfig, node: Mapping[str, Any]) -> DictConfig:
    """The configuration with another network in the place of ``teacher``."""
    role = copy.deepcopy(config)
    role.teacher = _with_defaults({k: v for k, v in node.items() if k != "seed"})
    role.choices.teacher = name_of(role.teacher.model, own_folder(config))
    role.needs_teacher = True
    # A split that follows the seed stays this run's own: another one would hold its test inputs.
    role.data = OmegaConf.create(OmegaConf.to_container(config.data, resolve=True))
    role.seed += APART * (node.get("seed") or 0)
    return role


def _check_kept(directory: RunDirectory) -> None:
    """Raise a ValueError for a teacher whose training began on other data of the same name."""
    if other := [key for key in directory.replaced() if key != "data.test_path"]:
        raise ValueError(
            f"the teacher in {directory.path} was trained when the file of {other[0]} had other "
            "content, and may know its test inputs: remove that folder, and one is trained anew"
        )


def _check_unread(config: DictConfig, settings: Mapping[str, Any]) -> None:
    """Raise a ValueError for a teacher's file where peers learn, none of which begins with it."""
    path = settings["teacher"]["checkpoint"]
    students = students_of(settings)
    if (
        settings["students"]
        and path
        and path not in [n.get("checkpoint") for n in students.values()]
    ):
        where = [w for w, node in students.items() if not node.get("of")][-1]
        raise ValueError(
            f"teacher.checkpoint: method={config.choices.method} has no teacher that was trained "
            "before, and all its networks learn from scratch: leave it out, or let one of them "
            f"begin with it by {where}.checkpoint=FILE"
        )


def check_accuracy(evaluate: Evaluator, strict: bool, runtime: Runtime) -> None:
    """Warn about a teacher that is hardly better than guessing: what it taught would be wrong.

    Args:
        evaluate: of the test split, with the teacher.
        strict: whether it is an error.
        runtime: of the run.

    Raises:
        ValueError: if ``strict``.
    """
    accuracy, count = evaluate.teacher_accuracy(), len(evaluate.split)
    if accuracy is None or not hardly_above(accuracy, evaluate.guessing_accuracy(), count):
        return
    words = (
        f"the teacher is right on {accuracy:.1%} of {count} test inputs, and guessing gives "
        f"{evaluate.guessing_accuracy():.1%}: its classes are in another order, its "
        "normalisation differs (teacher.mean, teacher.std), or this is the wrong checkpoint"
    )
    if strict:
        raise ValueError(f"{words}; strict=false goes on anyway")
    if runtime.main:
        print(f"warning: {words}", file=sys.stderr, flush=True)


def hardly_above(accuracy: float, chance: float, count: int) -> bool:
    """Whether an accuracy on ``count`` inputs is within 3 standard errors of that of chance, or
    takes less than a tenth of the way from there to 1; never where even 1 would be."""
    error = math.sqrt(max(0.0, chance * (1 - chance)) / count)
    least = chance + max(3 * error, 0.1 * (1 - chance))
    return accuracy <= least < 1


def rehearse_blank(settings: dict[str, Any], dataset: Dataset, runtime: Runtime) -> None:
    """Take a step with an untrained teacher, which shows mistakes before minutes of training."""
    others = {
        name: freeze(blank_teacher({"teacher": _with_defaults(node)}, dataset))
        for name, node in networks_of(settings).items()
    }
    for network in others.values():
        runtime.prepare(network)
    teacher = runtime.prepare(freeze(blank_teacher(settings, dataset)))
    assert isinstance(teacher, Classifier)
    settings = provisional(settings, dataset, teacher, runtime)
    node = settings["teacher"]
    specification(
        teacher.spec, teacher.spec, node["mean"], node["std"], node["range"], "the teacher"
    )
    check_network(teacher, len(dataset.classes))
    build_parts(settings, dataset, teacher, runtime, others)  # at full length: budgets and sizes
    rehearse(settings, dataset, teacher, runtime, others)


def _with_defaults(node: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict.fromkeys(f.name for f in fields(TeacherConfig)), **node}


def teacher_config(config: DictConfig) -> DictConfig:
    """The supervised run that trains this run's teacher."""
    c = config.choices
    recipe = compose([*own_words(config), "method=scratch", f"data={c.data}"])
    recipe.choices.student, recipe.student.model = c.teacher, config.teacher.model
    recipe.student.transform = config.teacher.transform
    own_recipe(recipe)
    recipe.data = {**config.data, "steps": recipe.data.steps}  # how long we run does not concern it
    alike = ("seed", "device", "precision", "compile", "deterministic", "tf32", "run_root")
    for key in alike:
        recipe[key] = config[key]
    return recipe
