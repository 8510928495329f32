"""Train a student, from a teacher alone or from data: compose the configuration and run it.

python train.py                                   the main job, on embedded digits
python train.py method=dafl data=mnist seed=1     another method on other data
python train.py --help                            the groups; --help GROUP lists its choices
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from core.runtime import Runtime, Stopped
from engine.config import compose
from engine.console import explain, unbroken
from engine.result import table
from engine.run import RunDirectory
from engine.train import run
from engine.usage import usage


def main(arguments: list[str]) -> int:
    """Return the exit code: 0, 1 for a user error, 70 for an internal error, 130 when stopped."""
    with unbroken():
        try:
            if {"--help", "-h"} & set(arguments):
                print(usage([a for a in arguments if a not in ("--help", "-h")]))
                return 0
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
    """Print the results and where they are."""
    if runtime.main:
        path = RunDirectory(config, runtime).path
        print(f"\n{table(result)}\n")
        print(f"run directory  {path}")
        print(f"inputs         {path / 'inputs.png'}")
        print(f"TensorBoard    tensorboard --logdir {path if config.run_dir else config.run_root}")


def handle_signals(runtime: Runtime) -> None:
    """Stop after a checkpoint on the first SIGINT or SIGTERM; exit at once on the second."""

    def stop(number: int, frame: FrameType | None) -> None:
        if runtime.stop_requested:
            os._exit(128 + number)
        runtime.stop_requested = True
        print("\nstopping after this step; again to quit at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


if __name__ == "__main__":
    sys.path.append(os.getcwd())  # for the user's own modules, after all others
    sys.exit(main(sys.argv[1:]))
