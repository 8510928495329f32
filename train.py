"""Train a student, from a teacher alone or from data: compose the configuration and run it.

python train.py                                   the main job, on embedded digits
python train.py method=dafl data=mnist seed=1     another method on other data
python train.py --help                            groups, choices and examples
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from core.runtime import Runtime, Stopped
from engine.catalogue import losses
from engine.config import ROOT, compose, groups
from engine.console import explain, unbroken
from engine.result import table
from engine.run import RunDirectory
from engine.train import run

EXAMPLES = """
Examples:
  python train.py
  python train.py method=dafl data=mnist teacher=lenet5 student=lenet5_half seed=1
  python train.py data=cifar10 teacher=resnet20 teacher.checkpoint=resnet20.safetensors \\
      teacher.mean=[0.485,0.456,0.406] teacher.std=[0.229,0.224,0.225]
  python train.py data=npz data.path=pathmnist.npz teacher=resnet18 student=resnet8x4
  python train.py student=wrn student.model.depth=22 student.model.width=2
  python train.py method=kd batch_size=64 optimizer.lr=0.05
  python train.py method=kd data=cifar100 loss=[at,rkd] distiller.losses.at.weight=500
  torchrun --nproc-per-node=2 train.py device=cpu

Flags:
  --help    this text
  --show    print the composed configuration and stop

The same command continues a run that was interrupted. `python -X dev train.py` shows tracebacks.
"""


def main(arguments: list[str]) -> int:
    """The exit code: 0, 1 for a mistake of the user's, 70 for one of ours, 130 when stopped."""
    if "--help" in arguments or "-h" in arguments:
        with unbroken():
            print(usage())
        return 0
    with unbroken():
        try:
            config = compose([a for a in arguments if a != "--show"])
            if "--show" in arguments:
                print(OmegaConf.to_yaml(config))
                return 0
            runtime = Runtime.of(config)
            handle_signals(runtime)
            report(config, runtime, run(config, runtime))
            runtime.close()
        except Stopped as stopped:
            print(f"\n{stopped}", file=sys.stderr)
            return 130
        except KeyboardInterrupt:  # before the signals had handlers
            print("\nstopped before the run began", file=sys.stderr)
            return 130
        except Exception as error:
            if sys.flags.dev_mode:
                raise
            return explain(error)
    return 0


def report(config: DictConfig, runtime: Runtime, result: dict[str, Any]) -> None:
    """What came out, and where it lies."""
    if runtime.main:
        path = RunDirectory(config, runtime).path
        print(f"\n{table(result)}\n")
        print(f"run directory  {path}")
        print(f"inputs         {path / 'inputs.png'}")
        print(f"TensorBoard    tensorboard --logdir {path if config.run_dir else config.run_root}")


def handle_signals(runtime: Runtime) -> None:
    """The first SIGINT or SIGTERM asks for a checkpoint and an end; the second ends at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if runtime.stop_requested:
            os._exit(128 + number)
        runtime.stop_requested = True
        print("\nstopping after this step; once more to end at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def usage() -> str:
    """The groups with their choices, the keys of every run, and examples."""
    lines = [__doc__ or "", "Groups (group=choice):"]
    for group, choices in groups().items():
        lines.append(f"  {group:<11} {' '.join(choices)}")
    lines += ["", "Transfer losses (loss=NAME or loss=[NAME,NAME]): weight; taps; paper"]
    for t in losses():
        lines.append(f"  {t.name:<11} {'; '.join(x for x in (t.weight, t.taps, t.paper) if x)}")
    lines += ["", "Keys (key=value; --show prints those of the groups too):"]
    text = (ROOT / "train.yaml").read_text().splitlines()
    lines += [f"  {line}" for line in text[text.index("seed: 0") :]]
    return "\n".join(lines) + "\n" + EXAMPLES


if __name__ == "__main__":
    sys.path.append(os.getcwd())  # for modules of the user's own, behind all others
    sys.exit(main(sys.argv[1:]))
