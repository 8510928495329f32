"""The training loop, with its logging, evaluations and checkpoints."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.runtime import Runtime, Stopped
from core.schedules import is_due
from data.spec import Batch
from engine.budget import parse_budget, verdict
from engine.diagnostics import LOOK, Inspector, announce
from engine.evaluate import Evaluator
from engine.metrics import build_metrics, measure
from engine.monitor import Board, Clock, LossMeter, Progress, brief, check_finite
from engine.parts import Parts
from engine.probe import Inputs
from engine.result import finish, summarize
from engine.run import RunDirectory
from engine.shown import views_of
from engine.snapshot import put_back, take
from models.classifier import Classifier


class Training:
    """The training loop of all methods: a method is a source, a distiller and their settings.

    Args:
        config: plain settings.
        parts: what is trained, and on what.
        teacher: frozen, or None.
        inputs: what the student is measured on.
        directory: claimed; None for steps that are timed and leave nothing.
        runtime: of the run.
    """

    def __init__(
        self,
        config: dict[str, Any],
        parts: Parts,
        teacher: Classifier | None,
        inputs: Inputs,
        directory: RunDirectory | None,
        runtime: Runtime,
    ) -> None:
        self.config, self.parts, self.runtime, self.inputs = config, parts, runtime, inputs
        if directory is not None:
            self.directory = directory
        self.steps: int = config["steps"]
        self.clock, self.meter = Clock(runtime), LossMeter()
        self.inspect = None
        if teacher is not None and config["data_free"]:
            rows = len(inputs.split) if inputs.real else 0
            self.inspect = Inspector(teacher, parts.result, runtime, rows)
        self.evaluate = Evaluator(
            parts.result, teacher, inputs.split, runtime, inspector=self.inspect
        )
        self.beside = {
            name: self.evaluate.beside(network) for name, network in parts.beside.items()
        }
        self.metrics_at_end = build_metrics(config, inputs.split)
        self.students: dict[str, dict[str, float]] = {}  # the latest figures of those
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
        self.begun = False  # to write
        self.events: dict[str, int] | None = None  # lengths of TensorBoard's files

    def run(self) -> dict[str, Any]:
        start = self._restore()
        self.parts.compile(self.runtime)
        network = self.runtime.parallel(self.parts.distiller, self.parts.spare)
        progress = Progress(self.steps, start) if self.runtime.main else None
        evaluates, saves = (
            partial(is_due, self.steps, self.config[k]) for k in ("evaluations", "checkpoints")
        )
        for step in range(start, self.steps):
            try:
                with self.clock.part("synthesis"):
                    batch = self.parts.source.next()
            except Stopped:  # in the middle of a long synthesis, which the resumed run repeats
                self._stop(step)
            with self.clock.part("distillation"):
                self._learn(network, batch, step)
            if not self.begun:
                self._check_first(step)
                self._begin()
            done = step + 1
            if done % self.config["log_every"] == 0 or evaluates(done) or saves(done):
                self._log(done)
            if evaluates(done):
                with self.clock.part("evaluation"):
                    self._evaluate(done)
            if progress:
                known = [n for n in ("accuracy", "agreement") if n in self.metrics][:1]
                note = "".join(f"{name} {self.metrics[name]:.2%}" for name in known)
                images = self.config["batch_size"] * self.runtime.world_size
                progress.update(done, images, self.losses, note)
            if self.runtime.asked_to_stop(step):
                self._stop(done)
            if saves(done):
                self._save(done)
        if progress:
            progress.close()
        return self._finish()

    def step(self, network: torch.nn.Module, step: int) -> None:
        """A batch and the student's step on it, untimed and unwritten."""
        self._learn(network, self.parts.source.next(), step)

    def _learn(self, network: torch.nn.Module, batch: Batch, step: int) -> None:
        """One optimizer step of the student."""
        parts = self.parts
        parts.schedule.apply(step / self.steps)
        parts.distiller.at(step / self.steps)
        losses = network(batch)
        losses.total.backward()
        if self.config["clip"]:
            trained = [p for p in parts.distiller.parameters() if p.requires_grad]
            torch.nn.utils.clip_grad_norm_(trained, self.config["clip"])
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.source.learned(batch, losses)
        parts.distiller.updated()
        report = {k: v for k, v in parts.source.report().items() if isinstance(v, Tensor)}
        values = {f"student/{k}": v for k, v in losses.values.items()}
        values |= {f"source/{k}": v for k, v in report.items()}
        self.meter.add(step, values)
        self.recent.append(batch.input.detach())

    def _check_first(self, step: int) -> None:
        """Check that the first step is finite, before an earlier run is replaced."""
        self.meter.check()
        check_finite({"student": self.parts.student.state_dict()}, step + 1)

    def _log(self, step: int) -> None:
        """Fetch the metrics from the device, check that they are finite, and write them."""
        losses = self.meter.flush()
        self.losses = brief(losses)
        if not (self.runtime.main and losses):
            return
        values = {f"loss/{name}": value for name, value in losses.items()}
        seconds = self.clock.settle()
        values["lr/student"] = self.parts.optimizer.param_groups[0]["lr"]
        for name, value in self.parts.source.report().items():
            if not isinstance(value, Tensor):
                values[name.replace("lr_", "lr/")] = value
        busy = seconds["synthesis"] + seconds["distillation"]
        images = step * self.config["batch_size"] * self.runtime.world_size
        speed = (images - self.logged[0]) / max(busy - self.logged[1], 1e-9)
        values["system/images_per_second"] = speed
        self.logged = (images, busy)
        values["system/peak_memory_bytes"] = float(self.runtime.peak_memory())
        values["system/seconds"] = self._wall()
        self.board.scalars(values, step)

    def _evaluate(self, step: int) -> None:
        for module in self.parts.networks.values():  # each rank has seen different inputs
            self.runtime.average(list(module.buffers()))
        before = self.found
        self.look()
        if not self.runtime.main:
            return
        self.board.scalars({f"eval/{k}": v for k, v in self.metrics.items()}, step)
        for name, figures in self.students.items():
            self.board.scalars({f"eval/{name}/{k}": v for k, v in figures.items()}, step)
        if self.found:
            announce(self.found, before, step)
            self.board.texts({f"warning/{k}": v for k, v in self.found["warnings"].items()}, step)
            self.board.histogram("synthesized/classes", self.found["class_histogram"], step)
            scalars = {k: v for k, v in self.found.items() if isinstance(v, float)}
            self.board.scalars({f"synthesized/{k}": v for k, v in scalars.items()}, step)
            for name, view in views_of(self.parts.student, self.recent[-1]).items():
                self.board.inputs(f"synthesized/{name}", *view, step)

    def look(self) -> None:
        """Evaluate the student and the inputs that were synthesized last."""
        self.metrics = self.evaluate()
        self.students = {name: evaluate() for name, evaluate in self.beside.items()}
        if self.validate:
            self.metrics["val_accuracy"] = self.validate()["accuracy"]
        self.best = max(self.best, self.metrics.get("accuracy", 0.0))
        if self.inspect:
            self.found = self.inspect(torch.cat(list(self.recent)))

    def _begin(self) -> None:
        """Start writing, once a step has shown that the run works."""
        self.directory.begin()
        if self.runtime.main:
            self.board = Board(self.directory.path, self.events)
        self.begun = True

    def _stop(self, step: int) -> None:
        place = f"{step} of {self.steps}"
        if not self.begun:
            raise Stopped(f"stopped at step {place}, before it wrote; the same command goes on")
        self._log(step)
        self._save(step)
        again = ", without overwrite=true," if self.config["overwrite"] else ""
        raise Stopped(
            f"stopped at step {place}, and saved in {self.directory.path}; "
            f"the same command{again} continues it"
        )

    def _save(self, step: int) -> None:
        self.clock.settle()
        state = take(self.parts, self.runtime) | {
            "step": step,
            "seconds": dict(self.clock.seconds) | {"wall": self._wall()},
            "recent": list(self.recent),
            "metrics": self.metrics,
            "students": self.students,
            "found": self.found,
            "best": self.best,
            "events": self.board.lengths() if self.runtime.main else {},
        }
        check_finite(state, step)
        self.directory.checkpoints.save(step, state)

    def _restore(self) -> int:
        """Continue from the last checkpoint, or start; returns the first step to take.

        Raises:
            ValueError: for a checkpoint that does not fit these parts.
        """
        self.began = time.perf_counter()
        self.wall_before = 0.0
        state = self.directory.load()
        # Weights were initialised alike on every rank; from here on ranks draw differently.
        torch.manual_seed(self.config["seed"] * 1009 + self.runtime.rank)
        if state is None:
            return 0
        put_back(state, self.parts, self.runtime, self.directory.path)
        self.events = state["events"]
        self.wall_before = state["seconds"].pop("wall")
        self.clock.seconds = state["seconds"]
        self.recent.extend(x.to(self.runtime.device) for x in state["recent"])
        self.metrics, self.found, self.best = state["metrics"], state["found"], state["best"]
        self.students = state["students"]
        busy = self.clock.seconds["synthesis"] + self.clock.seconds["distillation"]
        self.logged = (state["step"] * self.config["batch_size"] * self.runtime.world_size, busy)
        if self.runtime.main:
            print(f"resumed at step {state['step']} of {self.steps}", flush=True)
        return int(state["step"])

    def _say_budget(self) -> None:
        """Why the run took more or less time than its budget, if it did."""
        if (budget := self.config["budget"]) is not None:
            taken = self._wall() + self.clock.seconds["timing"]
            rounds = getattr(self.parts.source, "in_rounds", False)
            if words := verdict(parse_budget(budget), taken, rounds):
                print(words, flush=True)

    def _wall(self) -> float:
        return self.wall_before + time.perf_counter() - self.began

    def _finish(self) -> dict[str, Any]:
        """Write everything that a finished run leaves, and return the result."""
        if not self.begun:  # all steps were made before; a lost file of the result is restored
            self._begin()
        if not self.metrics:
            self._evaluate(self.steps)
        check_finite(self.parts.result.state_dict(), self.steps)
        more = measure(
            self.metrics_at_end, self.parts, self.teacher, self.inputs.split, self.runtime
        )
        result = summarize(
            self.config,
            self.parts,
            self.evaluate,
            self.teacher,
            self.inputs,
            {**self.metrics, **more.get(self.parts.deploy, {}), "best": self.best},
            {name: {**found, **more.get(name, {})} for name, found in self.students.items()},
            more.get("teacher", {}),
            self.found,
            {**self.clock.settle(), "wall": self._wall()},
            self.runtime,
        )
        if self.runtime.main:
            self._say_budget()
            images = self.recent[-1]
            result = finish(self.directory, self.board, self.parts, result, self.config, images)
        self.runtime.barrier()
        return result
