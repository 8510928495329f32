"""Write a student for use elsewhere, and check that it answers as the student does.

python -m tools.export RUN OUT.onnx                   ONNX, checked with onnxruntime
python -m tools.export RUN OUT.pt2                    torch.export's, checked with torch.export.load
python -m tools.export FILE OUT.onnx student=NAME     a student.safetensors outside of its run

Raw images go in: float32 [batch, *shape] in the value range; normalisation is inside. Logits
[batch, classes] come out. The file's metadata (ONNX: metadata_props; .pt2: extra_files) holds
input, shape, range, classes and provenance, each as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.files import write_whole
from data.spec import MORE, InputSpec
from engine.choices import KEY
from engine.config import compose, plain
from engine.ownership import CONFIG, mapping
from engine.student import FILE, load_student, student_of
from engine.teacher_file import check_transform
from engine.trust import sort_trust
from models.checkpoint import before_transform, load_weights
from models.classifier import Classifier
from tools.formats import FORMATS, Format, capture, first_line

BATCHES = (1, 2, 13)  # batch sizes at which the export is compared with the student
TOLERANCE = 1e-3  # of the logits, or of the largest logit if that is below 1
ROUNDING = 1e-5  # of the largest logit: what the order of float32 sums may change


def export(source: Path, out: Path, overrides: Sequence[str] = ()) -> str:
    """Write ``out``, whole or not at all, and return what to tell the user.

    Args:
        source: a run directory, or a student's file. If the file is in a run directory, that says
            which network it is.
        out: a file NAME.onnx or NAME.pt2 that does not exist.
        overrides: ``student=...`` and its keys, as for train.py, which say which network it is;
            ``trust=[...]`` and ``config_path=DIR``, see :func:`engine.trust.sort_trust`.

    Raises:
        ValueError: if anything is missing, the network cannot be exported, or the export does not
            give the student's answers.
    """
    kind = _format(out)
    run, file = _locate(source)
    student = _student(run, file, overrides)
    images, where = probes(run, student.takes)
    content = kind.write(capture(student), metadata_of(student, run, file))
    try:
        difference, largest = compare_logits(student, kind.read(content), images)
    except ValueError:
        raise
    except Exception as error:  # the runner has its own exceptions
        reason = first_line(error)
        raise ValueError(f"{kind.runner} cannot run what was exported: {reason}") from error
    write_whole(out, content)
    return (
        f"{out} ({len(content) / 1e6:.2f} MB): images {_expected(student.takes)}, to logits "
        f"[batch, {len(student.classes)}]\n"
        f"checked with {kind.runner} on {where} in batches of {_listed(BATCHES)}: "
        f"largest difference {difference:.1e}, of logits up to {largest:.3g}"
    )


def _student(run: Path | None, file: Path, overrides: Sequence[str]) -> Classifier:
    """The network that the command line describes, or else the run directory."""
    trust, words = sort_trust(overrides)
    if _chosen(words):
        node = plain(compose(words))["student"]
        if before_transform(file) is not None and node["transform"] is None:
            raise ValueError(
                f"{file} is of a network that sees its inputs through a transform: add "
                "student.transform=NAME"
            )
        if node["transform"] is not None:
            check_transform(file, node["transform"])
        return load_student(file, node["model"], node["transform"])
    if run:
        return student_of(run, trust)
    says = load_weights(file)[1].get("architecture")
    hint = f"; the file says that it holds {says!r}" if says else ""
    raise ValueError(f"{file} is not in a run directory: say student=NAME{hint}")


def _format(out: Path) -> Format:
    """The format of the output's name, once it is known that the file can be made."""
    kind = FORMATS.get(out.suffix)
    if kind is None:
        raise ValueError(f"{out}: give a name that ends in {' or '.join(FORMATS)}")
    if out.exists():
        raise ValueError(f"{out} exists: remove it, or give another name")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    kind.check()
    return kind


def _chosen(words: Sequence[str]) -> list[str]:
    """What describes the student."""
    chosen = [word for word in words if re.match(r"[~+]*student\b", word)]
    for word in words:
        if word not in chosen and not word.startswith(f"{KEY}="):
            raise ValueError(
                f"{word}: only student=NAME, its keys, trust=[...] and {KEY}=DIR go here"
            )
    return chosen


def _locate(source: Path) -> tuple[Path | None, Path]:
    """The run directory, if any, and the student's file."""
    if source.is_dir():
        return source, source / FILE
    if not source.exists():
        raise ValueError(f"{source} does not exist: give a run directory or a student's file")
    inside = source.name == FILE and (source.parent / "config.yaml").is_file()
    return source.parent if inside else None, source


def probes(run: Path | None, spec: InputSpec) -> tuple[Tensor, str]:
    """Inputs [N, *shape] to compare on, and what they are in words.

    Half are those that the run's student saw last, if its last checkpoint has any; the rest are
    uniformly distributed over the value range, with a seed of their own.
    """
    count = sum(BATCHES)
    seen = _seen(run) if run else None
    if seen is None or seen.shape[1:] != spec.shape or not seen.isfinite().all():
        seen = torch.zeros(0, *spec.shape)
    seen = seen[: count // 2]
    noise = torch.rand(count - len(seen), *spec.shape, generator=torch.Generator().manual_seed(0))
    low, high = spec.range
    images = torch.cat([seen, low + (high - low) * noise])
    random = f"{len(noise)} random inputs"
    return images, f"{len(seen)} inputs of the run and {random}" if len(seen) else random


def _seen(run: Path) -> Tensor | None:
    """The inputs in the last checkpoint, or None: the student can be exported without them."""
    files = sorted(run.glob("checkpoints/step-*/rank0.pt"))
    try:
        return torch.cat(torch.load(files[-1], "cpu", weights_only=True)["recent"]).float()
    except Exception:  # missing, damaged, or of another version
        return None


def metadata_of(student: Classifier, run: Path | None, file: Path) -> dict[str, str]:
    """The metadata, each value as JSON."""
    provenance: dict[str, Any] = {
        "student": load_weights(file)[1].get("architecture"),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),  # of the student's file
        "torch": torch.__version__,
    }
    if run:
        config = mapping(run / CONFIG)
        choices = config.get("choices")
        provenance |= choices if isinstance(choices, dict) else {}
        provenance |= {key: config.get(key) for key in ("seed", "steps")}
    said = student.takes.to_dict()
    values = {
        "input": f"{_expected(student.takes)}; normalised inside",
        "shape": student.takes.shape,
        "range": student.takes.range,
        **{key: said[key] for key in MORE if key in said},
        "classes": student.classes,
        "provenance": provenance,
    }
    return {key: json.dumps(value) for key, value in values.items()}


def compare_logits(
    student: Classifier, exported: Callable[[Tensor], Tensor], images: Tensor
) -> tuple[float, float]:
    """The largest difference of logits over batches of each size, and the largest logit.

    Raises:
        ValueError: if it is above 1e-3 (where no logit reaches 1, that share of the largest;
            where logits exceed 100, 1e-5 of the largest, as float32 is no finer), or not a number.
    """
    differences, largest = [], 0.0
    with torch.no_grad():
        for batch in images.split(BATCHES):
            wanted, got = student(batch).logits, exported(batch)
            if got.shape != wanted.shape:
                raise ValueError(
                    f"the export gives logits of shape {tuple(got.shape)}, not "
                    f"{tuple(wanted.shape)}: nothing was written"
                )
            differences.append((got - wanted).abs().max())
            largest = max(largest, wanted.abs().max().item())
    difference = torch.stack(differences).max().item()  # NaN if any is
    limit = max(TOLERANCE * min(1.0, largest), ROUNDING * largest)
    if not difference <= limit:
        raise ValueError(
            f"the export differs from the student by {difference:.1e}, where {limit:.1e} is "
            f"allowed (logits up to {largest:.3g}): nothing was written"
        )
    return difference, largest


def _expected(spec: InputSpec) -> str:
    low, high = spec.range
    shape = ", ".join(map(str, spec.shape))
    return f"float32 [batch, {shape}] with values from {low:g} to {high:g}"


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.export",
        description="Write a student for use elsewhere, as ONNX or as a program of torch.export.",
    )
    parser.add_argument("source", type=Path, metavar="RUN_OR_FILE", help="a run or its student")
    parser.add_argument("out", type=Path, metavar="OUT", help="a file NAME.onnx or NAME.pt2")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="student=NAME and its keys for a file outside of its run; config_path=DIR or "
        "trust=[MODULE,...] for a run directory that names networks of your own",
    )
    given = parser.parse_args(arguments)
    try:
        print(export(given.source, given.out, given.overrides))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
