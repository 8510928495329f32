"""A whole run, from its configuration to its result. To resume, run the same command again."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from core.runtime import Runtime
from engine.config import plain
from engine.length import Length
from engine.loop import Training
from engine.moments import measure_moments, provisional
from engine.pairing import check_synthesized
from engine.parts import build_dataset, build_parts
from engine.probe import inputs_for, stand_in
from engine.rehearsal import rehearse
from engine.run import RunDirectory
from engine.teacher import check_accuracy, obtain_others, obtain_teacher


def run(config: DictConfig, runtime: Runtime, wait: bool = False) -> dict[str, Any]:
    """Claim the run directory, build the parts, train, and return the result.

    Nothing is written, and nothing of an earlier run is removed, before the first step is made.

    Raises:
        ValueError: for anything that the user can correct.
        Stopped: after a signal, when the checkpoint is on disk.
    """
    with runtime.together(), RunDirectory(config, runtime, wait).claimed() as directory:
        if (result := directory.result()) is not None:
            directory.say_changed()
            return result
        directory.say_lost()
        settings = plain(config)
        length = Length(settings, directory)
        dataset = build_dataset(settings, runtime)
        if settings["data_free"]:
            check_synthesized(dataset)
        teacher, origin = obtain_teacher(config, settings, dataset, runtime, run)
        others, origins = obtain_others(config, settings, dataset, runtime, run)
        trial = provisional(settings, dataset, teacher, runtime)  # what it lacks may take minutes
        spare = runtime.any(rehearse(trial, dataset, teacher, runtime, others))
        origins += measure_moments(config, settings, dataset, teacher, runtime)
        length.fix(dataset, teacher, stand_in(config, dataset, teacher, runtime), runtime, others)
        inputs = inputs_for(config, dataset, teacher, runtime)  # after: it may take minutes
        parts = build_parts(settings, dataset, teacher, runtime, others)
        parts.spare = spare
        training = Training(settings, parts, teacher, inputs, directory, runtime)
        training.clock.seconds["timing"] = length.seconds
        check_accuracy(training.evaluate, settings["strict"], runtime)
        lines = [origin, *origins, *parts.notes, length.plan(dataset, teacher, inputs, runtime)]
        for line in filter(None, lines if runtime.main else []):
            print(line, flush=True)
        return training.run()
