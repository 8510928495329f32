"""How well agreement on a probe set ranks students, from runs whose real accuracy is known.

    python benchmarks/reproduce.py digits-half-minute mnist-2min -- data.root=DIR
    python benchmarks/agreement.py                 from those runs in runs/results/

Every student is measured as in a run with data=none: on a :class:`engine.probe.Probe` of its
teacher, made by two methods that did not train it. There are two controls: the inputs that the
student was trained on, and uniform noise. The results go into benchmarks/results/, and
`reproduce.py --table` makes a section and a plot of docs/results/data-free.md from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.files import write_whole
from core.runtime import Runtime
from engine.config import compose, plain
from engine.parts import build_dataset
from engine.probe import Probe
from engine.run import RunDirectory
from engine.student import student_of
from engine.teacher import teacher_config
from engine.teacher_file import load_teacher

ROOT = Path(__file__).resolve().parents[1]
SETS = {"digits": "digits-half-minute-", "MNIST": "mnist-2min-"}  # rows, by what they begin with
SEED = 0  # of the noise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/agreement.json")
    options = parser.parse_args()
    found = []
    for data, beginning in SETS.items():
        for file in sorted(options.runs.glob(f"{beginning}*/seed*/result.json")):
            if (file.parent / "student.safetensors").exists():
                found.append({"data": data} | measured(file.parent))
                print(json.dumps(found[-1]), flush=True)
    write_whole(options.out, json.dumps(found, indent=1) + "\n")


def measured(run: Path) -> dict[str, Any]:
    """The measurements of one finished run: fractions of inputs."""
    result = json.loads((run / "result.json").read_text())
    config = OmegaConf.load(run / "config.yaml")
    assert isinstance(config, DictConfig)
    runtime = Runtime("cpu", seed=SEED)
    file = RunDirectory(teacher_config(config), runtime).path / "student.safetensors"
    without = compose(
        [
            "data=none",
            f"method={result['method']}",
            f"teacher={config.choices.teacher}",
            f"teacher.checkpoint={file}",
            f"student={config.choices.student}",
            f"run_root={config.run_root}",
            "device=cpu",
        ]
    )
    settings = plain(without)
    dataset = build_dataset(settings, runtime)
    teacher = load_teacher(settings, str(file), dataset, runtime)
    student, probe = student_of(run), Probe(without, dataset, teacher, runtime)
    [(inputs, _)] = probe.split.batches(len(probe.split))
    low, high = teacher.spec.range
    noise = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        agree, agree_on_noise = (
            (student(x).logits.argmax(1) == teacher(x).logits.argmax(1)).float()
            for x in (inputs, low + (high - low) * noise)
        )
    halves = agree.chunk(len(probe.methods))
    return {
        "method": result["method"],
        "seed": result["seed"],
        "accuracy": result["student"]["accuracy"],
        "agreement": float(agree.mean()),
        "by": {name: float(half.mean()) for name, half in zip(probe.methods, halves, strict=True)},
        "own": result["synthesized"]["agreement"],
        "noise": float(agree_on_noise.mean()),
    }


if __name__ == "__main__":
    main()
