"""Draw the README's picture: real test digits beside the inputs that a run synthesized.

python benchmarks/picture.py RUN_DIRECTORY [OUT]        (OUT: docs/digits.png)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.io import ImageReadMode, decode_image
from torchvision.utils import save_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.runtime import Runtime
from data.builtin import digits
from data.spec import InputSpec


def main(run: str, out: str = "docs/digits.png") -> None:
    synthesized = decode_image(str(Path(run) / "inputs.png"), ImageReadMode.RGB) / 255
    images, _ = digits(Runtime("cpu")).open("test").batch(slice(0, 64))
    spec = InputSpec((1, 8, 8))
    real = spec.kind.picture(images, spec)
    gap = torch.ones(3, real.shape[1], 6)
    both = torch.cat([real, gap, synthesized], dim=2)
    save_image(F.interpolate(both[None], scale_factor=4, mode="nearest"), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
