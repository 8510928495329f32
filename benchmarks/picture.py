"""Draw real test inputs beside those that a run synthesized, such as docs/digits.png.

python benchmarks/picture.py RUN_DIRECTORY OUT [HEIGHT]        (HEIGHT: pixels of both to keep)

Where the student sees them through a transform, both are drawn as it sees them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torchvision.io import ImageReadMode, decode_image
from torchvision.utils import save_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.runtime import Runtime
from engine.ownership import CONFIG, PICTURE, SEEN
from engine.parts import build_dataset
from engine.student import student_of

SHOWN = 64  # of the test split


def main(run: str, out: str, height: str = "") -> None:
    folder = Path(run)
    seen = (folder / SEEN).exists()
    synthesized = decode_image(str(folder / (SEEN if seen else PICTURE)), ImageReadMode.RGB) / 255
    config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG), resolve=True)
    assert isinstance(config, dict)
    dataset = build_dataset({**config, "data_free": False}, Runtime("cpu"))  # type: ignore[dict-item]
    split = dataset.open("test")
    every = max(1, len(split) // SHOWN)  # of all classes, in files that are sorted by them
    inputs, _ = split.batch(torch.arange(0, len(split), every)[:SHOWN])
    spec = dataset.spec
    if seen:
        student = student_of(folder)
        assert student.transform is not None, "or there were no such picture"
        inputs, spec = student.transform(inputs), student.spec
    real = spec.kind.picture(inputs, spec)
    rows = min(int(height or real.shape[1]), real.shape[1], synthesized.shape[1])
    gap = torch.ones(3, rows, 16)
    save_image(torch.cat([real[:, :rows], gap, synthesized[:, :rows]], dim=2), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
