"""What a finished run leaves: result.json, the student's file, a picture and a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from core.files import write_whole
from core.runtime import Runtime
from engine.budget import parse_budget
from engine.card import card, write_card
from engine.evaluate import Evaluator
from engine.monitor import Board
from engine.ownership import RESULT, STUDENT, STUDENTS, make_way
from engine.parts import Parts
from engine.probe import Inputs
from engine.run import SCHEMA, RunDirectory
from engine.shown import write_inputs
from models.checkpoint import save_network
from models.classifier import Classifier

FIGURES = ("accuracy", "agreement", "ece")
STUDENT_KEYS = {"name", "best_accuracy", "parameters", "val_accuracy", "ece_to_teacher", *FIGURES}
SWEPT = ("seed", "steps", "batch_size", "precision", "ema", "clip")
TIMED = ("wall", "timing", "synthesis", "distillation", "evaluation")


def summarize(
    config: dict[str, Any],
    parts: Parts,
    evaluate: Evaluator,
    teacher: Classifier | None,
    inputs: Inputs,
    metrics: dict[str, float],
    others: dict[str, dict[str, float]],
    teachers: dict[str, float],
    synthesized: dict[str, Any],
    seconds: dict[str, float],
    runtime: Runtime,
) -> dict[str, Any]:
    """The content of ``result.json``; accuracies are fractions, counts are sums over ranks.

    ``student`` is the network that is deployed; where several learn, ``students`` has each by name.
    What cannot be known is null, and ``measured_on`` says why. Without labels, a single process
    also gives agreement and confidence class by class, as the teacher sees the classes.
    """
    choices = config["choices"]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "finished",
        "method": choices["method"],
        "data": choices["data"],
        "seed": config["seed"],
        "teacher": teacher
        and {
            "name": choices["teacher"],
            "accuracy": evaluate.teacher_accuracy(),
            "parameters": teacher.parameter_count(),
        }
        | teachers,
        "student": _student(_name(config), parts.result, metrics, config["metrics"]),
        "measured_on": {
            "inputs": len(inputs.split),
            "labels": inputs.split.labelled,
            "real": inputs.real,
            "what": inputs.words,
        },
        "cost": _cost(config, parts, seconds, runtime),
    }
    if others:
        everyone = {parts.deploy: metrics, **others}
        result["students"] = _students(parts, everyone, [*FIGURES, *config["metrics"]])
    if not inputs.split.labelled and runtime.world_size == 1:
        names = parts.student.classes or range(len(parts.dataset.classes))
        measured = zip(names, evaluate.measure().classes, strict=True)
        result["classes"] = [{"class": str(name)} | figures for name, figures in measured]
    if synthesized:
        result["synthesized"] = synthesized
    return result


def _students(
    parts: Parts, figures: dict[str, dict[str, float]], keys: list[str]
) -> dict[str, dict[str, Any]]:
    """Every network that learned, by its name."""
    return {
        name: {key: figures[name].get(key) for key in keys}
        | {"parameters": network.parameter_count()}
        for name, network in {parts.deploy: parts.result, **parts.beside}.items()
    }


def _name(config: dict[str, Any]) -> str:
    """Of the deployed network: its architecture, and its own name where it is not ``student``."""
    chosen: str = config["choices"]["student"]
    deployed: str = config["deploy"]
    return chosen if deployed == "student" else deployed


def _student(
    name: str, student: Classifier, metrics: dict[str, float], more: Iterable[str]
) -> dict[str, Any]:
    return {
        "name": name,
        "accuracy": metrics.get("accuracy"),
        "best_accuracy": metrics["best"] if "accuracy" in metrics else None,
        "agreement": metrics.get("agreement"),
        "ece": metrics.get("ece"),
        "parameters": student.parameter_count(),
    } | {k: v for k, v in metrics.items() if k in ("val_accuracy", "ece_to_teacher", *more)}


def _cost(
    config: dict[str, Any], parts: Parts, seconds: dict[str, float], runtime: Runtime
) -> dict[str, Any]:
    counts = parts.counts()
    if config["data_free"]:  # the data set's word counts, not the synthesizer's
        counts["real_training_inputs_read"] += parts.dataset.real_training_inputs_read
    totals = runtime.sum(torch.tensor(list(counts.values()), device=runtime.device)).tolist()
    return {
        **{f"{part}_seconds": seconds.get(part, 0.0) for part in TIMED},
        "steps": config["steps"],
        **({} if config["budget"] is None else {"budget_seconds": parse_budget(config["budget"])}),
        **dict(zip(counts, totals, strict=True)),
        "peak_memory_bytes": runtime.peak_memory(),
        "device": runtime.device_name,
        **{setting: config[setting] for setting in ("precision", "deterministic", "tf32")},
    }


def finish(
    directory: RunDirectory,
    board: Board,
    parts: Parts,
    result: dict[str, Any],
    config: dict[str, Any],
    images: Tensor,
) -> dict[str, Any]:
    """Write everything; ``result.json`` last, since it says that the run is finished.

    Returns:
        The result; if only other files of a finished run were lost, the one that is there.
    """
    student = parts.result
    path = directory.path / STUDENT
    make_way(path)
    kind = {"architecture": config["choices"]["student"]}
    save_network(path, student, kind | _transform(config, parts.learner(parts.deploy)))
    for name, network in parts.beside.items():
        beside = directory.path / STUDENTS / f"{name}.safetensors"
        beside.parent.mkdir(exist_ok=True)
        make_way(beside)
        more = _transform(config, parts.learner(name))
        save_network(beside, network, {"architecture": name} | more)
    write_inputs(directory.path, images, student)
    board.summarize(swept(config))
    board.close()
    if (earlier := directory.result()) is not None:
        return earlier
    write_card(directory.path, card(directory.path, config, parts, result))
    make_way(directory.path / RESULT)
    write_whole(directory.path / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def _transform(config: Mapping[str, Any], name: str) -> dict[str, str]:
    """The entry of a file's header that tells the transform of a student, or of its trunk."""
    nodes = {"student": config["student"], **config["students"]}
    while nodes[name].get("of"):
        name = nodes[name]["of"]
    node = nodes[name].get("transform")
    return {} if node is None else {"transform": json.dumps(node)}


def swept(config: dict[str, Any]) -> dict[str, str | float]:
    """The settings that usually vary between runs, by key: choices, rates, weights of losses."""
    found = config["choices"] | {key: config[key] for key in SWEPT}
    for part in ("optimizer", "synthesizer", "source", "distiller", "synthesis"):
        found |= _rates(config.get(part), part)
    return {key: value for key, value in found.items() if value is not None}


def _rates(node: Any, path: str) -> dict[str, Any]:
    """Each number below a node that is called ``lr`` or ``weight``."""
    if not isinstance(node, dict):
        return {}
    found: dict[str, Any] = {}
    for key, value in node.items():
        below = f"{path}.{key}"
        number = key in ("lr", "weight") and isinstance(value, (int, float))
        found |= {below: value} if number else _rates(value, below)
    return found


def table(result: dict[str, Any]) -> str:
    """The result in lines for a terminal."""
    teacher, student, cost = result["teacher"], result["student"], result["cost"]
    rows = []
    if teacher and teacher["accuracy"] is not None:
        rows.append(("teacher accuracy", f"{teacher['accuracy']:.2%}  ({teacher['name']})"))
    known = "not known: there are no labels"
    right = known if student["accuracy"] is None else f"{student['accuracy']:.2%}"
    rows.append(("student accuracy", f"{right}  ({student['name']})"))
    if student["agreement"] is not None:
        rows.append(("agreement with the teacher", f"{student['agreement']:.2%}"))
    if student["ece"] is not None:
        rows.append(("calibration error (ECE)", f"{student['ece']:.2%}"))
    elif "ece_to_teacher" in student:
        rows.append(("calibration to the teacher", f"{student['ece_to_teacher']:.2%}"))
    for name in student.keys() - STUDENT_KEYS:
        rows.append((name.replace("_", " "), f"{student[name]:.2%}"))
    for name, figures in result.get("students", {}).items():
        if figures["accuracy"] is not None and figures["accuracy"] != student["accuracy"]:
            rows.append((f"accuracy of {name}", f"{figures['accuracy']:.2%}"))
    if not result["measured_on"]["labels"]:
        rows.append(("measured on", result["measured_on"]["what"]))
    rows += [
        ("time", f"{cost['wall_seconds']:.1f} s on {cost['device']}, {cost['precision']}"),
        ("images synthesized", f"{cost['images_synthesized']:,}"),
        ("real training inputs read", f"{cost['real_training_inputs_read']:,}"),
    ]
    if "out_of_domain_inputs_read" in cost:
        rows.append(("inputs of another domain read", f"{cost['out_of_domain_inputs_read']:,}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
