"""What belongs to a run: a folder that its contents prove ours, and the files we wrote in it.

Nothing else in the folder is ever changed or removed.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open

from core.files import PARTIAL, keep_aside
from engine.checkpoints import Checkpoints
from models.checkpoint import FORMAT
from models.checksum import check, metadata

CONFIG, VERSIONS, NEXT = "config.yaml", "versions.json", "config.yaml.next"
RESULT, STUDENT, PICTURE = "result.json", "student.safetensors", "inputs.png"
SOUND, TEXT = "inputs.wav", "inputs.txt"  # where inputs have one
SEEN = "inputs_student.png"  # where the student sees them through a transform
STUDENTS = "students"  # a folder of those that are not deployed
PROBES = "probes"  # a folder beside runs, of what they are measured on
METRICS, CARD, CHECKPOINTS = "metrics.jsonl", "README.md", "checkpoints"
NAMES = (CONFIG, VERSIONS, NEXT, RESULT, STUDENT, PICTURE, SEEN, SOUND, TEXT, METRICS, CARD)
MARK = "<!-- Written by train.py at the end of this run. -->"  # begins a card of ours
TEXT_MARK = "The last inputs that the student learned from, written by train.py."
LAYOUT = {"choices", "data_free", "distiller", "needs_teacher", "seed", "source", "student"}
CHOICES = {"data", "method", "student"}
RESULTS = {"schema", "status", "method", "data", "seed", "teacher", "student", "cost"}
VERSIONED = {"torch", "python", "threads"}
EVENTS = "events.out.tfevents."
SUFFIX = ".reverie"  # of our event files: other programs may write theirs to the same folder
# The last commits with the names that came before.
BEFORE_LOSSES, BEFORE_STREAMS = "394706e591", "85c4f97"
UNMARKED = b"speed/images_per_second"  # a tag in those that we wrote before they had the suffix


def stranger(folder: Path) -> str | None:
    """Why a folder with files in it is not the directory of a run, or None where it is.

    A ``config.yaml`` of our layout is not enough, since a user may have copied it: either something
    beside it is ours too, or nothing has been written beside it yet.
    """
    beside = {p.name for p in folder.iterdir()} - {name + PARTIAL for name in NAMES}
    if not beside:
        return None
    if CONFIG not in beside:
        return f"it has no {CONFIG}"
    if not laid_out(mapping(folder / CONFIG)):
        return f"its {CONFIG} is another program's, or damaged"
    if beside <= {CONFIG, NEXT} or mapping(folder / VERSIONS).keys() >= VERSIONED:
        return None
    if any(folder.glob("checkpoints/step-*/rank0.pt")):
        return None
    return f"it has no {VERSIONS} of ours"


def outdated(config: dict[str, Any]) -> str | None:
    """Why the run of a recorded configuration cannot be continued by this version."""
    last = None
    if "terms" in (config.get("distiller") or {}):
        last = BEFORE_LOSSES
    elif config.get("synthesis") and "synthesizer" not in config:
        last = BEFORE_STREAMS
    said = "holds a run of an earlier version; the last commit to continue it is"
    return f"{said} {last}" if last else None


def blocked(folder: Path) -> str | None:
    """What blocks a run's files: a folder with a file's name, or the reverse."""
    for path in (folder / name for name in NAMES):
        if path.is_dir():
            return f"{path} is a folder, but a run writes a file there"
    path = folder / CHECKPOINTS
    if os.path.lexists(path) and not path.is_dir():
        return f"{path} is not a folder, but a run writes its checkpoints there"
    return None


def laid_out(config: dict[str, Any]) -> bool:
    """Whether this is the configuration of one of our runs."""
    choices = config.get("choices")
    return config.keys() >= LAYOUT and isinstance(choices, dict) and choices.keys() >= CHOICES


def mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file's content; empty where it is missing, damaged or something else."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception:  # a damaged file can raise nearly anything
        return {}
    return content if isinstance(content, dict) else {}  # type: ignore[return-value]


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files that we wrote."""
    found = (p for p in folder.glob(f"{EVENTS}*") if p.is_file())
    return [p for p in found if p.name.endswith(SUFFIX) or UNMARKED in p.read_bytes()]


def fault(path: Path) -> str | None:
    """What is wrong with a file that a finished run leaves, or None if nothing is."""
    if not path.is_file():
        return "is missing"
    try:
        if path.name == STUDENT:
            check(path)
            with safe_open(path, "pt"):  # this checks its length against its header
                pass
            return None if metadata(path).get("format") == FORMAT else "is damaged"
        if path.name in (PICTURE, SEEN):
            with Image.open(path) as image:
                image.verify()
            return None
        result = json.loads(path.read_text())
        return None if result["status"] == "finished" and result.keys() >= RESULTS else "is damaged"
    except PermissionError:
        raise
    except Exception:  # a damaged file can raise nearly anything
        return "is damaged"


def make_way(path: Path) -> None:
    """Keep aside a file that may be somebody else's, before we write or remove one of its name."""
    if path.is_file() and not _ours(path):
        print(f"{path} is damaged or not ours, and kept as {keep_aside(path).name}", flush=True)


def _ours(path: Path) -> bool:
    if path.name == STUDENT or path.parent.name == STUDENTS:
        return metadata(path).get("format") == FORMAT
    if path.name in (PICTURE, SEEN):
        return fault(path) is None
    if path.name in (SOUND, TEXT):
        first = b"RIFF" if path.name == SOUND else TEXT_MARK.encode()
        return path.read_bytes().startswith(first)
    if path.name == METRICS:
        with open(path, "rb") as file:
            return file.read(9) in (b'{"step": ', b"")
    return mapping(path).keys() >= RESULTS


def remove_products(folder: Path, checkpoints: Checkpoints) -> None:
    """Remove what a run has made, except the files that show whose the folder is."""
    for name in (RESULT, STUDENT, PICTURE, SEEN, SOUND, TEXT, METRICS):
        make_way(folder / name)
        (folder / name).unlink(missing_ok=True)
    if (card := folder / CARD).is_file() and card.read_bytes().startswith(MARK.encode()):
        card.unlink()
    for path in event_files(folder):
        path.unlink()
    for path in (folder / STUDENTS).glob("*.safetensors"):
        make_way(path)
        path.unlink(missing_ok=True)
    with suppress(OSError):  # one that holds other files stays
        (folder / STUDENTS).rmdir()
    checkpoints.remove()


def remove_partial(folder: Path) -> None:
    """Remove what a kill left half written."""
    for name in NAMES:
        (folder / (name + PARTIAL)).unlink(missing_ok=True)
