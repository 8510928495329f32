"""The machine, and its speed in matrix products: python benchmarks/gpu_machine.py [cuda|cpu]"""

from __future__ import annotations

import sys
from pathlib import Path

import kornia
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step_time import now
from core.runtime import Runtime

TIMES = 10


def main(device: str) -> None:
    runtime = Runtime(device)
    print("torch", torch.__version__, "torchvision", torchvision.__version__, end=" ")
    print("kornia", kornia.__version__, "cuDNN", torch.backends.cudnn.version())
    print(runtime.device_name)
    size = 8192 if runtime.device.type == "cuda" else 256
    a = torch.randn(size, size, device=runtime.device, dtype=torch.bfloat16)
    torch.mm(a, a)  # sets things up
    began = now(runtime)
    for _ in range(TIMES):
        torch.mm(a, a)
    seconds = now(runtime) - began
    print(f"bf16, {size} x {size}: {TIMES * 2 * size**3 / seconds / 1e12:.1f} TFLOP/s")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
