"""The interface of transfer losses, and how they name the features that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from core.annotations import check_needs
from models.classifier import Classifier, Outputs
from models.taps import named_taps

Taps = Sequence[str | Mapping[str, str]]
"""Each a name, for both networks, or ``{student: name, teacher: name}``."""

STAGES = ("stages",)


@dataclass
class Side:
    """One of the two networks, as a loss sees it before training starts.

    Args:
        outputs: of a dry pass in eval mode over a few inputs, with the loss's taps.
        head: the network's last linear layer, where it ends in one.
        network: itself, for a loss that asks it about inputs of its own.
    """

    outputs: Outputs
    head: nn.Linear | None = None
    network: Classifier | None = None


class TransferLoss(nn.Module):
    """A scalar that the student minimises: ``forward(student, teacher, batch) -> Tensor``.

    Students and teachers are :class:`~models.classifier.Outputs`; a loss that needs no teacher gets
    None. Answers under ``reads`` come as further arguments, by name; their features are those at
    the same taps.

    Its own parameters and buffers (projections, variances, memories) are trained and checkpointed
    beside the student and are not part of the student's file. Those that depend on the shapes of
    features are made in :meth:`prepare`.

    Args:
        taps: what it reads, as names or module paths. ``stages`` is every stage that both networks
            have, paired from the last one back; ``stage-1`` is the last stage of each.

    Attributes:
        student_taps: the student's taps, in the order of ``taps``.
        teacher_taps: the teacher's.
        read_taps: those of the answers under ``reads``, by their names.
        needs_teacher: whether it reads the teacher's outputs at all.
        needs_label: whether it reads ``batch.label``.
        asks_networks: whether it asks both networks itself, at the student's input, besides reading
            their answers.
    """

    needs_teacher = True
    needs_label = False
    asks_networks = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        check_needs(cls, TransferLoss)

    def __init__(self, taps: Taps = (), /) -> None:
        super().__init__()
        self.taps = [_pair(tap) for tap in taps]
        self.student_taps = tuple(student for student, _ in self.taps)
        self.teacher_taps = tuple(teacher for _, teacher in self.taps)
        self.read_taps: dict[str, tuple[str, ...]] = {}

    def resolve(
        self, student: Mapping[str, str], teacher: Mapping[str, str], **reads: Mapping[str, str]
    ) -> None:
        """Replace ``stages`` and ``stage-1`` by the stages that the networks name.

        Args:
            student: the student's named taps.
            teacher: the teacher's.
            reads: those of the networks under ``reads``, each resolved as the teacher is.

        Raises:
            ValueError: if a network names none.
        """
        pairs = [pair for tap in self.taps for pair in _resolve(tap, student, teacher)]
        self.student_taps = tuple(s for s, _ in pairs)
        self.teacher_taps = tuple(t for _, t in pairs)
        for key, names in reads.items():
            found = [pair for tap in self.taps for pair in _resolve(tap, student, names)]
            self.read_taps[key] = tuple(t for _, t in found)

    def prepare(self, student: Side, teacher: Any) -> None:
        """Build the parts that depend on shapes; called once, before the optimizer is made.

        Args:
            teacher: a :class:`Side` too, or None for a loss that needs no teacher.
        """

    def prepare_reads(self, reads: Mapping[str, Side]) -> None:
        """Called before :meth:`prepare`, with the networks under ``reads`` by their arguments.

        Args:
            reads: empty where the configuration names none.
        """

    @property
    def needs_instance(self) -> bool:
        """Whether it compares both networks on one and the same thing, seen by each in its way.

        Losses on features do, and on relations between inputs, which they read from features.
        Predictions tell what class an input is of, and can be learned from another of the class.
        A loss for which this is otherwise says so by an attribute of its own.
        """
        return self.needs_teacher and bool(self.taps)

    @property
    def wants_shapes(self) -> bool:
        own = type(self)
        return (own.prepare, own.prepare_reads) != (
            TransferLoss.prepare,
            TransferLoss.prepare_reads,
        )

    def pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """The student's and the teacher's feature at each tap.

        Raises:
            ValueError: if there is no tap.
        """
        if not self.student_taps:
            raise ValueError(f"{type(self).__name__} reads features: name some in its taps=[...]")
        names = zip(self.student_taps, self.teacher_taps, strict=True)
        return [(student.features[s], teacher.features[t]) for s, t in names]


def side(network: Classifier, outputs: Outputs) -> Side:
    """A :class:`Side` of a network, with the live weights of its head."""
    path = named_taps(network.module).get("logits")
    head = network.module.get_submodule(path) if path else None
    while isinstance(head, nn.Sequential):  # torchvision's dropout and layer
        head = head[-1]
    return Side(outputs, head if isinstance(head, nn.Linear) else None, network)


def _pair(tap: str | Mapping[str, str]) -> tuple[str, str]:
    if isinstance(tap, str):
        return tap, tap
    if not isinstance(tap, Mapping) or set(tap) != {"student", "teacher"}:
        raise ValueError(
            f"a tap is a name, or {{student: name, teacher: name}}, but here it is {tap!r}"
        )
    return tap["student"], tap["teacher"]


def _resolve(
    pair: tuple[str, str], student: Mapping[str, str], teacher: Mapping[str, str]
) -> list[tuple[str, str]]:
    if pair == ("stages", "stages"):
        both = (_stages(student, "student"), _stages(teacher, "teacher"))
        count = min(map(len, both))
        return list(zip(*(stages[-count:] for stages in both), strict=True))
    return [(stage_tap(pair[0], student, "student"), stage_tap(pair[1], teacher, "teacher"))]


def _stages(taps: Mapping[str, str], role: str) -> list[str]:
    names = [name for name in taps if name.startswith("stage")]
    if not names:
        raise ValueError(
            f"the {role} names no stages: give module paths, to a loss as "
            "taps=[{student: PATH, teacher: PATH}], to a branch as students.NAME.tap=PATH"
        )
    return names


def stage_tap(name: str, taps: Mapping[str, str], role: str) -> str:
    """``stage-k`` counts from the last; anything else is a name already.

    Raises:
        ValueError: for a network without as many stages.
    """
    count = name.removeprefix("stage-")
    if count == name or not count.isdecimal():
        return name
    stages, back = _stages(taps, role), int(count)
    if not 1 <= back <= len(stages):
        raise ValueError(f"no tap {name!r}: the {role}'s stages are {', '.join(stages)}")
    return stages[-back]
