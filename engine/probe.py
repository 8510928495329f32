"""What a student is measured on: a test split, or inputs that other methods synthesize."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from core.files import write_whole
from core.runtime import Runtime, Stopped
from data.dataset import Dataset, Split
from data.spec import InputSpec
from engine.choices import own_words
from engine.config import compose, plain
from engine.ownership import PROBES
from engine.parts import build_parts
from models.classifier import Classifier

METHODS = 2  # that a probe set comes from, so that no method's preferences decide alone
SEED = 0  # the same inputs for every run with this teacher, so that runs can be compared
DECIDING = ("source", "synthesizer", "synthesis", "generator", "steps", "batch_size")
DRAWS = 10  # batches in which distinct inputs are looked for


@dataclass
class Inputs:
    """What a student is measured on.

    Args:
        split: with labels or without.
        words: a description of it.
        real: False for synthesized inputs, on which agreement can be measured, but not accuracy.
    """

    split: Split
    words: str
    real: bool = True


def inputs_for(
    config: DictConfig, dataset: Dataset, teacher: Classifier | None, runtime: Runtime
) -> Inputs:
    """The test split, or where there is none a :class:`Probe` of the teacher.

    Raises:
        ValueError: if there is neither.
    """
    if teacher is None or dataset.has("test"):
        split = dataset.open("test")
        labels = "" if split.labelled else ", which have no labels"
        return Inputs(
            split, f"the test split of {config.choices.data}: {len(split):,} inputs{labels}"
        )
    probe = Probe(config, dataset, teacher, runtime)
    made = (
        f"{len(probe.split):,} inputs synthesized from the teacher by {' and '.join(probe.methods)}"
    )
    return Inputs(probe.split, f"{made}, as there is no test data", real=False)


def stand_in(
    config: DictConfig, dataset: Dataset, teacher: Classifier | None, runtime: Runtime
) -> Inputs:
    """What an evaluation can be timed on: the test split, or as much noise as a probe has inputs.

    A probe takes minutes to make, after which a budget that is too short would be a nuisance.
    """
    if teacher is None or dataset.has("test"):
        return inputs_for(config, dataset, teacher, runtime)
    count = METHODS * config.probe.size
    takes = teacher.takes
    noise = takes.encode(takes.noise(count, torch.device("cpu")))
    split = split_of(noise, takes, runtime)
    return Inputs(split, "noise", real=False)


class Probe:
    """Inputs synthesized from a teacher by methods that do not train the student.

    They depend on the teacher and on the settings of ``probe`` alone, not on the run's seed or
    steps, and are kept under ``run_root``: every method's student is measured on the same inputs.
    Only a student of one of the probe's own methods is not: another method replaces that one.

    Args:
        config: as composed.
        dataset: of the run, without a test split.
        teacher: frozen, on its device.
        runtime: of the run.
        what: what is measured on them, and why; begins the message if they cannot be made.
        instead: what to do then.

    Attributes:
        methods: the two that made the inputs.
        split: the inputs, without labels.

    Raises:
        ValueError: if fewer than two methods of ``probe.methods`` can be used.
    """

    def __init__(
        self,
        config: DictConfig,
        dataset: Dataset,
        teacher: Classifier,
        runtime: Runtime,
        what: str = "without test data the student is",
        instead: str = "give test data",
    ) -> None:
        self.runtime, self.dataset, self.teacher = runtime, dataset, teacher
        self.folder = Path(config.run_root) / PROBES
        self.weights = _digest(teacher.module.state_dict())
        images: list[Tensor] = []
        names, refused = [], []
        for name, overrides in config.probe.methods.items():
            if name == config.choices.method or len(images) == METHODS:
                continue
            try:
                images.append(self._inputs(config, name, list(overrides)))
                names.append(name)
            except ValueError as error:
                refused.append(f"{name} ({error})")
        if len(images) < METHODS:
            raise ValueError(
                f"{what} measured on inputs that {METHODS} of probe.methods synthesize, but these "
                f"cannot be used: {'; '.join(refused)}: {instead}, or name other methods"
            )
        self.methods = tuple(names)
        self.split = split_of(torch.cat(images), teacher.takes, runtime)

    def _inputs(self, config: DictConfig, method: str, overrides: list[str]) -> Tensor:
        """As the modality stores them [size, *shape], made now or by an earlier run."""
        recipe = self._recipe(config, method, overrides)
        settings = plain(recipe)
        what = {key: settings[key] for key in DECIDING}
        key = [self.weights, self.teacher.takes.to_dict(), what, config.probe.size]
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / f"{method}-{name}.safetensors"
        kept = _kept(path)
        if not self.runtime.any(kept is None):  # or all ranks make them
            assert kept is not None
            return kept
        images = self._synthesize(method, settings, config.probe.size)
        if self.runtime.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, save({"inputs": images}))
        self.runtime.barrier()
        # those of the main process: on a GPU, others may differ in their last bits
        kept = None if self.runtime.main else _kept(path)
        return images if kept is None else kept

    def _recipe(self, config: DictConfig, method: str, overrides: list[str]) -> DictConfig:
        """The method's configuration, for this run's networks."""
        size = config.probe.size
        chosen = [f"method={method}", f"data={config.choices.data}", f"batch_size={size}"]
        words = [*own_words(config), *chosen, *overrides]
        recipe = compose(words, complete=False)  # the networks are this run's
        if "iterations" in recipe.synthesizer:
            recipe.synthesizer.size = size  # one round makes all
        for key in ("teacher", "student", "data"):
            recipe[key] = config[key]
        return recipe

    def _synthesize(self, method: str, settings: Mapping[str, Any], size: int) -> Tensor:
        """Distinct inputs of the source's last batches; every process makes the same."""
        alone = copy.copy(self.runtime)
        alone.seed, alone.rank, alone.world_size = SEED, 0, 1
        parts = build_parts(dict(settings), self.dataset, self.teacher, alone)
        if self.runtime.main:
            print(
                f"measuring: {method} synthesizes {size} inputs (probe.size) "
                f"from the teacher, once; kept in {self.folder} and not counted in a budget",
                flush=True,
            )
        for _ in range(settings["steps"] - 1):
            if alone.stop_requested:  # rounds ask by themselves
                raise Stopped
            parts.source.next()
        takes = self.teacher.takes
        found = torch.empty(0, *takes.stored, dtype=takes.kind.storage)
        for _ in range(DRAWS * max(1, size // settings["batch_size"])):
            drawn = takes.encode(parts.source.next().input).cpu()
            found = torch.cat([found, drawn]).unique(dim=0)
            if len(found) >= size:
                break
        return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(SEED))][
            :size
        ].contiguous()


def split_of(stored: Tensor, spec: InputSpec, runtime: Runtime) -> Split:
    """Inputs without labels, as their modality stores them."""
    return Split(stored, None, runtime.device, spec.modality, spec.range, spec.shape)


def _kept(path: Path) -> Tensor | None:
    """The inputs in a file, or None where it is missing or damaged: they are made again then."""
    try:
        return load(path.read_bytes())["inputs"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _digest(state: Mapping[str, Tensor]) -> str:
    """Of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
