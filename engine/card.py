"""README.md of a run directory: the model card of the run's student."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from core.files import write_whole
from engine.catalogue import comment
from engine.choices import file_of, own_folder, own_words
from engine.command import data_of, overrides_of
from engine.loading import exported_lines, loading_lines
from engine.ownership import CARD, MARK, PICTURE, SEEN, SOUND, TEXT
from engine.parts import Parts
from engine.warm_start import TEACHER
from models.classifier import Classifier

PARTS = ("synthesis", "distillation", "evaluation")
NAMES = 20  # classes that are listed
# What benchmarks/agreement.py found, as docs/results/data-free.md has it.
RANKS = (
    "It tells which of two students of one teacher is the better one: where accuracy was known, on "
    "digits and MNIST, agreement on such inputs ranked 74 students as accuracy did (Spearman 0.89 "
    "and 0.84), and lay 20 to 24 points below it."
)
MEANINGS = {  # of the figures that engine.diagnostics finds
    "class_balance": "entropy of the classes that the teacher predicts for them; 1 is uniform",
    "teacher_entropy": "of its prediction for one input, the mean in nats",
    "agreement": "of student and teacher on them; not a measure of quality",
    "bn_gap": "distance of their BatchNorm statistics from the teacher's, mean over layers",
    "frechet_distance": "to the test inputs, in the teacher's features",
    "diversity": "distance to the nearest neighbour; that of test inputs is 1",
}


def write_card(folder: Path, text: str) -> None:
    """Write README.md, unless there is one that this program did not write.

    Raises:
        ValueError: if it cannot be written.
    """
    path = folder / CARD
    if path.exists() and not path.read_bytes().startswith(MARK.encode()):
        print(f"{path} is not this program's file and stays; no card is written", flush=True)
        return
    write_whole(path, text)


def card(folder: Path, config: dict[str, Any], parts: Parts, result: dict[str, Any]) -> str:
    """The card in Markdown; equal runs have equal cards, except for time, memory and versions.

    Args:
        folder: the run directory, for its versions.json.
        config: plain settings.
        parts: of the finished run.
        result: the content of its result.json.
    """
    student, teacher = result["student"], result["teacher"]
    of = f", a student of {teacher['name']}" if teacher else ""
    sections = [
        f"{MARK}\n# {' '.join(student['name'].split())}{of}",
        _origin(config, parts, result),
        "## The command\n\nIt repeats this run. Add `run_dir=` and, where data sets are not "
        "in `datasets/`, `data.root=`.\n\n" + _indented(_command(config)),
        _figures(config, parts, result),
        _synthesized(result),
        _cost(result),
        _inputs(folder),
        _use(config, parts),
        _versions(folder),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _inputs(folder: Path) -> str:
    """The picture, and a link to what one can hear or read."""
    more = [f"[{name}]({name})" for name in (SOUND, TEXT) if (folder / name).is_file()]
    also = f" Also: {', '.join(more)}." if more else ""
    said = f"The last inputs that the student learned from.{also}"
    seen = (
        f"\n\nAs the student sees them:\n\n![inputs]({SEEN})" if (folder / SEEN).is_file() else ""
    )
    return f"## Pictures\n\n{said}\n\n![inputs]({PICTURE}){seen}"


def _origin(config: dict[str, Any], parts: Parts, result: dict[str, Any]) -> str:
    data, student, classes = result["data"], parts.result, parts.dataset.classes
    names = ", ".join(map(_code, classes[:NAMES])) + (", …" if len(classes) > NAMES else "")
    read = result["cost"]["real_training_inputs_read"]
    if config["data_free"]:
        use = "for evaluation only" if parts.dataset.has("test") else "nothing was read"
    else:
        use = f"{read:,} training inputs read"
    averaged = f", averaged over its steps (decay {config['ema']:g})" if config["ema"] else ""
    begun = _beginning(config, parts.learner(parts.deploy))
    rows = [("student", f"{_network(result['student'])}{averaged}{begun}")]
    if result["teacher"]:
        rows.append(("teacher", _teacher(config, result)))
    rows += [
        ("method", _method(config)),
        ("losses", ", ".join(map(_code, config["distiller"]["losses"]))),
        ("data", f"`{data}`, {use}"),
        ("input", _input(student)),
        ("classes", f"{len(classes)}: {names}"),
        ("seed", str(result["seed"])),
    ]
    return _table(("", ""), rows)


def _beginning(config: dict[str, Any], name: str) -> str:
    role = config["student"] if name == "student" else config["students"][name]
    if (path := role.get("checkpoint")) is None:
        return ""
    return ", began as a copy of the teacher" if path == TEACHER else f", began with {_code(path)}"


def _method(config: dict[str, Any]) -> str:
    name = config["choices"]["method"]
    path = file_of("method", name, own_folder(config))
    return _code(name) + (f": {comment(path)}" if path.exists() else "")


def _teacher(config: dict[str, Any], result: dict[str, Any]) -> str:
    path = config["teacher"]["checkpoint"]
    whence = f"loaded from {_code(path)}" if path else "trained with real data by a run of its own"
    box = ", a black box to the method" if config["teacher"]["black_box"] else ""
    return f"{_network(result['teacher'])}, {whence}{box}"


def _input(student: Classifier) -> str:
    spec = student.spec
    low, high = spec.range
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (spec.mean, spec.std))
    size = " x ".join(map(str, spec.shape))
    seen = f", through `{type(student.transform).__name__}`" if student.transform else ""
    return (
        f"{size}{seen}, values from {low:g} to {high:g}, normalised with mean {mean} and std {std}"
    )


def _command(config: dict[str, Any]) -> str:
    """For a shell, in lines of at most about 90 characters."""
    try:
        words = overrides_of(config)
    except ValueError:  # a configuration that a program put together
        return "python train.py    # with the settings in config.yaml"
    lines = ["python train.py"]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > 88:
            lines.append("   ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _figures(config: dict[str, Any], parts: Parts, result: dict[str, Any]) -> str:
    student, teacher, on = result["student"], result["teacher"], result["measured_on"]
    rows = []
    if on["labels"]:
        rows.append(
            ("accuracy", _percent(student["accuracy"]), "share of inputs classified correctly")
        )
    if teacher and on["labels"]:
        same = "on the same inputs"
        rows.append(("accuracy of the teacher", _percent(teacher["accuracy"]), same))
    if teacher:
        rows.append(
            ("agreement", _percent(student["agreement"]), "share given the teacher's class")
        )
    error = "expected calibration error, 15 bins: confidence against "
    if on["labels"]:
        rows.append(("ECE", _percent(student["ece"]), error + "accuracy"))
    else:
        rows.append(("ECE", _percent(student["ece_to_teacher"]), error + "agreement"))
    if "val_accuracy" in student:
        held = f"on {len(parts.dataset.open('val')):,} training inputs that were held out"
        rows.append(("accuracy in validation", _percent(student["val_accuracy"]), held))
    head = (
        f"## Figures\n\nMeasured after the last of {config['steps']:,} steps, on {on['what']}. "
        "The run did not train on them.\n\n"
    )
    table = head + _table(("figure", "value", "how it is measured"), rows)
    return table + (_best(student) if on["labels"] else _by_class(result))


def _best(student: dict[str, Any]) -> str:
    if student["best_accuracy"] is None:
        return ""
    return (
        f"\n\nThe highest accuracy of all evaluations was {_percent(student['best_accuracy'])}; "
        "since it is chosen on the test split, it is not a fair estimate."
    )


def _by_class(result: dict[str, Any]) -> str:
    """What is known without labels, with a note that this is not accuracy."""
    text = "\n\nThere are no labels: accuracy is unknown, and agreement is not an estimate of it."
    if not result["measured_on"]["real"]:
        text += f" {RANKS}"
    rows = [
        (c["class"], f"{c['inputs']:,}", _percent(c["agreement"]), _percent(c["confidence"]))
        for c in result.get("classes", [])[:NAMES]
        if c["inputs"]
    ]
    if not rows:
        return text
    return f"{text}\n\n" + _table(
        ("the teacher's class", "inputs", "agreement", "confidence"), rows
    )


def _synthesized(result: dict[str, Any]) -> str:
    found = result.get("synthesized")
    if not found:
        return ""
    rows = [(n.replace("_", " "), f"{found[n]:.4g}", m) for n, m in MEANINGS.items() if n in found]
    head = "## Synthesized inputs\n\nThe latest ones, as the teacher sees them.\n\n"
    warnings = "".join(f"\n\nWarning: {words}." for words in found["warnings"].values())
    return head + _table(("figure", "value", "what it is"), rows) + warnings


def _cost(result: dict[str, Any]) -> str:
    cost = result["cost"]
    parts = ", ".join(f"{p} {cost[p + '_seconds']:.1f} s" for p in PARTS)
    rows = [
        ("time", f"{cost['wall_seconds']:.1f} s ({parts})"),
        ("memory", f"{cost['peak_memory_bytes'] / 1e6:,.0f} MB at the peak"),
        ("device", f"{cost['device']}, {cost['precision']}"),
    ]
    counts = ("images_synthesized", "teacher_queries", "real_training_inputs_read")
    more = [name for name in ("out_of_domain_inputs_read",) if name in cost]
    rows += [(name.replace("_", " "), f"{cost[name]:,}") for name in [*counts, *more]]
    return "## Cost\n\n" + _table(("", ""), rows)


def _use(config: dict[str, Any], parts: Parts) -> str:
    name = parts.learner(parts.deploy)
    role = config["student"] if name == "student" else config["students"][name]
    if role.get("of"):
        return "## Use\n\nOnly a run with the same command can build this network."
    node, student = role["model"], parts.result
    root = node["_target_"].partition(".")[0]
    own = [f" {shlex.quote(word)}" for word in own_words(config)]
    trust = "" if root == "models" else own[0] if own else f" trust=[{root}]"
    data = " ".join(map(shlex.quote, data_of(config))) if parts.dataset.has("test") else "data=NAME"
    seen = ""
    if student.transform is not None:
        seen = (
            "Here `x` is what the student's transform makes of an input; an export contains it.\n\n"
        )
    lines = loading_lines(node, student.spec, len(parts.dataset.classes))
    return (
        f"## Use\n\nIn plain PyTorch, from this folder:\n\n```python\n{lines}\n```\n\n{seen}"
        "To export it with its normalisation, as ONNX or as PyTorch's own `.pt2`, which need no "
        "source of its network, run this in Reverie's folder or with that on PYTHONPATH; RUN is "
        "this folder:\n\n"
        + _indented(f"python -m tools.export RUN student.pt2{trust}")
        + f"\n\n```python\n{exported_lines(student.takes)}\n```\n\n"
        "To measure it on any data:\n\n"
        + _indented(f"python -m tools.evaluate RUN {data}{own[0] if own else trust}")
    )


def _versions(folder: Path) -> str:
    path = folder / "versions.json"
    versions = json.loads(path.read_text()) if path.exists() else {}
    return "## Versions\n\n" + _table(("", ""), [(k, str(v)) for k, v in versions.items()])


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text for one table cell: on one line, with bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    """Text as inline code, even if it contains backticks."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _network(network: dict[str, Any]) -> str:
    return f"{network['name']}, {network['parameters']:,} parameters"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"
