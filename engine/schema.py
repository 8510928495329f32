"""The schema: every key that a configuration has, its type and its default.

A key whose type names ``Path`` holds a path: the command line gives it as it is, unread by Hydra's
grammar. So does an argument of a part that is annotated so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NewType

Node = NewType("Node", dict)  # what the builder builds: a mapping with a _target_


@dataclass
class TrainingConfig:
    """The supervised recipe of a data set."""

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    augment: list[Any] = field(default_factory=list)


@dataclass
class DataConfig:
    """A data set and the supervised recipe that suits it."""

    dataset: Node
    training: TrainingConfig
    steps: int  # of a data-free run, the same for all methods, so that they can be compared
    root: str | Path = "datasets"
    path: str | Path | None = None
    size: int | None = None
    val_fraction: float = 0.0


@dataclass
class TeacherConfig:
    """``shape`` to ``classes`` say what its file does not say about its input."""

    model: Node
    checkpoint: str | Path | None = None
    weights: str | None = None  # which of a checkpoint's networks
    shape: list[int] | None = None  # of one input, channels first
    range: list[float] | None = None  # smallest and largest value of an input
    mean: list[float] | None = None  # one value per channel, in units of the range
    std: list[float] | None = None
    classes: int | list[str] | None = None  # how many, or their names in label order
    black_box: Node | None = None  # hides all but its answers from the run
    transform: Node | None = None  # what it is shown of an input; null: the input


@dataclass
class OtherTeacherConfig(TeacherConfig):
    """A network besides ``teacher``; it is trained with the run's seed plus 100 times ``seed``."""

    seed: int = 0


@dataclass
class StudentConfig:
    """``mean`` and ``std`` are those of what it is shown."""

    model: Node
    checkpoint: str | Path | None = None  # what it begins with: a file, or teacher, for a copy
    weights: str | None = None  # which of a checkpoint's networks
    transform: Node | None = None  # what it is shown of an input; null: the input
    mean: list[float] | None = None  # null: the checkpoint's, the data's, or measured
    std: list[float] | None = None


@dataclass
class OtherStudentConfig(StudentConfig):
    """A student besides ``student``; with ``of`` a branch on the tap of one that stands before."""

    of: str | None = None
    tap: str | None = None


@dataclass
class LossConfig:
    """One entry of an objective. ``taps`` is short for ``loss.taps``, what the loss reads."""

    loss: Node
    weight: float = 1.0
    schedule: Node | None = None
    taps: list[Any] | None = None


@dataclass
class TransferConfig(LossConfig):
    """``NAME`` or ``NAME@VIEW`` of who learns and of its target; ``others`` are the other students.

    ``reads`` names further answers, by the argument of the loss that takes them.
    """

    student: str | list[str] = "student"
    teacher: str | list[str] = "teacher"
    reads: dict[str, Any] | None = None


@dataclass
class ObjectiveConfig:
    """What is minimised: a weighted sum of named losses."""

    losses: dict[str, LossConfig] = field(default_factory=dict)


@dataclass
class SynthesisConfig(ObjectiveConfig):
    """What a synthesizer minimises, and how teacher and student see its inputs.

    The keys beside ``losses`` are those of :class:`generators.observer.Observer`.
    """

    views: list[dict[str, Any]] = field(default_factory=list)
    local_views: list[dict[str, Any]] = field(default_factory=list)
    student_by_batch: bool = False


@dataclass
class DistillerConfig(ObjectiveConfig):
    """``labels`` of synthesized inputs: those the source aimed at, or what the teacher says."""

    losses: dict[str, TransferConfig] = field(default_factory=dict)  # type: ignore[assignment]
    labels: Literal["source", "teacher"] = "source"


@dataclass
class TurnConfig:
    """An owner of parameters, such as ``students.peer``, that learns in its own way or turn."""

    of: str
    optimizer: Node | None = None  # null: another of the run's
    every: int = 1  # steps
    first: int = 0  # in 0 .. every - 1


@dataclass
class ProbeConfig:
    """Inputs that a student is measured on where there is no test data."""

    methods: dict[str, list[str]] = field(default_factory=dict)  # each with its overrides
    size: int = 256  # inputs of each of two methods


@dataclass
class Config:
    """Everything a run depends on. ``steps`` counts the student's optimizer steps."""

    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    generator: Node
    source: Node
    distiller: DistillerConfig
    optimizer: Node
    schedule: Node
    steps: int
    batch_size: int
    data_free: bool  # no training split can be opened
    needs_teacher: bool = True
    students: dict[str, OtherStudentConfig] = field(default_factory=dict)
    teachers: dict[str, OtherTeacherConfig] = field(default_factory=dict)  # or a part each
    views: dict[str, Any] = field(default_factory=dict)
    turns: dict[str, TurnConfig] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # measured at the end, by name
    shuffled_pairs: bool = False  # a control: losses across modalities see wrong pairs
    deploy: str = "student"  # the network that the run is for
    synthesizer: Node | None = None  # makes the inputs of a run without data
    synthesis: SynthesisConfig | None = None
    budget: int | float | str | None = None  # of time: 10m in place of a number of steps
    plan: bool | None = None  # None: where there is no test data
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    clip: float | None = None
    ema: float = 0.0
    seed: int = 0
    evaluations: int = 10
    checkpoints: int = 20
    log_every: int = 50
    config_path: str | Path | None = None  # a folder of the user's own groups and modules
    run_root: str | Path = "runs"
    run_dir: str | Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    deterministic: bool = True
    tf32: bool = False
    overwrite: bool = False
    strict: bool = False  # whether a warning ends the run before it begins
    choices: dict[str, Any] = field(default_factory=dict)


LEAST = dict.fromkeys(("steps", "batch_size", "log_every"), 1)
MOST = dict.fromkeys(("evaluations", "checkpoints"), 1_000_000)  # more can only be a typing mistake
LEAST |= dict.fromkeys(("ema", "clip", "evaluations", "checkpoints", "seed"), 0)
