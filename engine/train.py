"""A whole run, from its configuration to its result. To resume, run the same command again."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from data.spec import Batch
from engine.diagnostics import LOOK, Inspector, announce
from engine.evaluate import Evaluator
from engine.monitor import Board, Clock, Meter, Progress, brief, check_finite
from engine.parts import Parts, build_dataset, build_parts, plain
from engine.result import finish, picture, summarize
from engine.run import RunDirectory
from engine.runtime import Runtime, Stopped
from engine.teacher import obtain_teacher
from models.classifier import Classifier


def run(config: DictConfig, runtime: Runtime, wait: bool = False) -> dict[str, Any]:
    """Claim the run directory, build the parts, train, and return the result.

    Raises:
        ValueError: for whatever a user can mend, before anything is written where possible.
        Stopped: after a signal, when the checkpoint is on disk.
    """
    with RunDirectory(config, runtime, wait).claimed() as directory:
        if (result := directory.result()) is not None:
            return result
        settings = plain(config)
        dataset = build_dataset(settings, runtime)
        teacher, origin = obtain_teacher(config, settings, dataset, runtime, run)
        parts = build_parts(settings, dataset, teacher, runtime)
        directory.begin()
        lines = [origin, *(f"adapter: {line}" for line in parts.distiller.adaptations)]
        for line in filter(None, lines if runtime.main else []):
            print(line, flush=True)
        return Training(settings, parts, teacher, directory, runtime).run()


class Training:
    """The one loop: every method is a source, a distiller and their settings.

    Args:
        config: plain settings.
        parts: what is trained, and on what.
        teacher: frozen, or None.
        directory: claimed.
        runtime: of the run.
    """

    def __init__(
        self,
        config: dict[str, Any],
        parts: Parts,
        teacher: Classifier | None,
        directory: RunDirectory,
        runtime: Runtime,
    ) -> None:
        self.config, self.parts, self.directory, self.runtime = config, parts, directory, runtime
        self.steps: int = config["steps"]
        self.clock, self.meter = Clock(runtime), Meter()
        test = parts.dataset.open("test")
        self.inspect = None
        if teacher is not None and config["data_free"]:
            self.inspect = Inspector(teacher, parts.result, runtime, len(test))
        self.evaluate = Evaluator(parts.result, teacher, test, runtime, inspector=self.inspect)
        self.validate = None
        if config["data"]["val_fraction"] and not config["data_free"]:
            val = parts.dataset.open("val")
            self.validate = Evaluator(parts.result, teacher, val, runtime)
        self.teacher = teacher
        kept = max(1, LOOK // config["batch_size"]) if self.inspect else 1
        self.recent: deque[Tensor] = deque(maxlen=kept)
        self.found: dict[str, Any] = {}
        self.logged = (0, 0.0)  # images and busy seconds at the latest log
        self.losses: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.best = 0.0

    def run(self) -> dict[str, Any]:
        start = self._restore()
        self.runtime.compile(self.parts.student.module)
        network = self.runtime.parallel(self.parts.distiller)
        progress = Progress(self.steps, start) if self.runtime.main else None
        evaluates, saves = (
            partial(_is_due, self.steps, self.config[k]) for k in ("evaluations", "checkpoints")
        )
        for step in range(start, self.steps):
            try:
                with self.clock.part("synthesis"):
                    batch = self.parts.source.next()
            except Stopped:  # in the midst of a long synthesis, which the resumed run repeats
                self._stop(step)
            with self.clock.part("distillation"):
                self._learn(network, batch, step)
            done = step + 1
            if done % self.config["log_every"] == 0 or evaluates(done) or saves(done):
                self._log(done)
            if evaluates(done):
                with self.clock.part("evaluation"):
                    self._evaluate(done)
            if progress:
                note = f"accuracy {self.metrics['accuracy']:.2%}" if self.metrics else ""
                images = self.config["batch_size"] * self.runtime.world_size
                progress.update(done, images, self.losses, note)
            if self.runtime.asked_to_stop(step):
                self._stop(done)
            if saves(done):
                self._save(done)
        if progress:
            progress.close()
        return self._finish()

    def _learn(self, network: torch.nn.Module, batch: Batch, step: int) -> None:
        """One optimizer step of the student."""
        parts = self.parts
        parts.schedule.apply(step / self.steps)
        parts.distiller.objective.at(step / self.steps)
        losses = network(batch)
        losses.total.backward()
        if self.config["clip"]:
            trained = [p for p in parts.distiller.parameters() if p.requires_grad]
            torch.nn.utils.clip_grad_norm_(trained, self.config["clip"])
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.source.learned(batch, losses)
        if parts.ema:
            parts.ema.update()
        report = {k: v for k, v in parts.source.report().items() if isinstance(v, Tensor)}
        values = {f"student/{k}": v for k, v in losses.terms.items()}
        values |= {f"source/{k}": v for k, v in report.items()}
        self.meter.add(step, values)
        self.recent.append(batch.teacher_input.detach())

    def _log(self, step: int) -> None:
        """Bring the metrics over, check that they are finite, and write them."""
        values = self.meter.flush()
        self.losses = brief(values)
        if not (self.runtime.main and values):
            return
        seconds = self.clock.settle()
        values["lr/student"] = self.parts.optimizer.param_groups[0]["lr"]
        for name, value in self.parts.source.report().items():
            if not isinstance(value, Tensor):
                values[name.replace("lr_", "lr/")] = value
        busy = seconds["synthesis"] + seconds["distillation"]
        images = step * self.config["batch_size"] * self.runtime.world_size
        speed = (images - self.logged[0]) / max(busy - self.logged[1], 1e-9)
        values["speed/images_per_second"] = speed
        self.logged = (images, busy)
        values["memory/peak_bytes"] = float(self.runtime.peak_memory())
        self.board.scalars(values, step)

    def _evaluate(self, step: int) -> None:
        averaged = [self.parts.ema.module] if self.parts.ema else []
        for module in [self.parts.student, *averaged]:  # each rank has seen other inputs
            self.runtime.average(list(module.buffers()))
        self.metrics = self.evaluate()
        if self.validate:
            self.metrics["val_accuracy"] = self.validate()["accuracy"]
        self.best = max(self.best, self.metrics["accuracy"])
        before = self.found
        if self.inspect:
            self.found = self.inspect(torch.cat(list(self.recent)))
        if not self.runtime.main:
            return
        self.board.scalars({f"test/{k}": v for k, v in self.metrics.items()}, step)
        if self.found:
            announce(self.found, before, step)
            self.board.texts({f"warning/{k}": v for k, v in self.found["warnings"].items()}, step)
            self.board.histogram("synthesized/classes", self.found["class_histogram"], step)
            scalars = {k: v for k, v in self.found.items() if isinstance(v, float)}
            self.board.scalars({f"synthesized/{k}": v for k, v in scalars.items()}, step)
            grid = picture(self.recent[-1], self.parts.student.spec)
            self.board.images("synthesized/inputs", grid, step)

    def _stop(self, step: int) -> None:
        self._log(step)
        self._save(step)
        raise Stopped(f"stopped at step {step} of {self.steps}, and saved in {self.directory.path}")

    def _save(self, step: int) -> None:
        self.clock.settle()
        cuda = self.runtime.device.type == "cuda"
        state = {
            "step": step,
            "distiller": self.parts.distiller.state_dict(),
            "optimizer": self.parts.optimizer.state_dict(),
            "source": self.parts.source.state_dict(),
            "ema": self.parts.ema.state_dict() if self.parts.ema else None,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if cuda else None,
            "seconds": dict(self.clock.seconds) | {"wall": self._wall()},
            "recent": list(self.recent),
            "metrics": self.metrics,
            "found": self.found,
            "best": self.best,
            "events": self.board.lengths() if self.runtime.main else {},
        }
        check_finite(state, step)
        self.directory.save(step, state)

    def _restore(self) -> int:
        """Continue from the last whole checkpoint, or start; returns the first step to take.

        Raises:
            ValueError: for a checkpoint whose contents these parts do not have.
        """
        self.began = time.perf_counter()
        self.wall_before = 0.0
        state = self.directory.load()
        if self.runtime.main:
            self.board = Board(self.directory.path, state["events"] if state else None)
        # Weights were initialised alike on every rank; from here on ranks draw differently.
        torch.manual_seed(self.config["seed"] * 1009 + self.runtime.rank)
        if state is None:
            return 0
        try:
            self._take_up(state)
        except torch.OutOfMemoryError:
            raise
        except (KeyError, RuntimeError, ValueError) as error:  # all that load_state_dict raises
            reason = " ".join(str(error).split())[:100]
            raise ValueError(
                f"the checkpoint of step {state['step']} in {self.directory.path} does not fit "
                f"({reason}): another version of the code wrote it. Go on with that version, or "
                "start again with another run_dir=... or overwrite=true"
            ) from error
        if self.runtime.main:
            print(f"resumed at step {state['step']} of {self.steps}", flush=True)
        return int(state["step"])

    def _take_up(self, state: dict[str, Any]) -> None:
        """Everything that :meth:`_save` put down."""
        self.parts.distiller.load_state_dict(state["distiller"])
        self.parts.optimizer.load_state_dict(state["optimizer"])
        self.parts.source.load_state_dict(state["source"])
        if self.parts.ema:
            self.parts.ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.runtime.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"])
        self.wall_before = state["seconds"].pop("wall")
        self.clock.seconds = state["seconds"]
        self.recent.extend(x.to(self.runtime.device) for x in state["recent"])
        self.metrics, self.found, self.best = state["metrics"], state["found"], state["best"]
        busy = self.clock.seconds["synthesis"] + self.clock.seconds["distillation"]
        self.logged = (state["step"] * self.config["batch_size"] * self.runtime.world_size, busy)

    def _wall(self) -> float:
        return self.wall_before + time.perf_counter() - self.began

    def _finish(self) -> dict[str, Any]:
        """The result, and everything that a reader of the run directory wants."""
        if not self.metrics:
            self._evaluate(self.steps)
        check_finite(self.parts.result.state_dict(), self.steps)
        result = summarize(
            self.config,
            self.parts,
            self.evaluate.teacher_accuracy(),
            self.teacher,
            {**self.metrics, "best": self.best},
            self.found,
            {**self.clock.settle(), "wall": self._wall()},
            self.runtime,
        )
        if self.runtime.main:
            finish(self.directory, self.board, self.parts, result, self.config, self.recent[-1])
        self.runtime.barrier()
        return result


def _is_due(steps: int, count: int, step: int) -> bool:
    """Whether ``step`` is one of ``count`` spread evenly over the run, of which its end is one.

    The multiples of ``steps / count``, rounded down; none is ever listed, however many they are.
    """
    return step > 0 and -(-step * count // steps) < -(-(step + 1) * count // steps)
