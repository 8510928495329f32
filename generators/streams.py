"""What a mixture's batches consist of: streams of inputs, new ones and those of the past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.objective import Losses
from data.pairs import Pair
from data.spec import Batch
from generators.base import Ask, Drawing, Made, Synthesizer, Workload


@dataclass(frozen=True)
class Place:
    """Where a stream stands in its mixture.

    Args:
        size: inputs of each batch that it supplies.
        ahead: inputs of a batch that stand before those.
        period: batches between two updates of the synthesizer.
        alone: whether all batches but those that come with answers consist of what it supplies, and
            nothing changes them.
    """

    size: int
    ahead: int
    period: int
    alone: bool = False


class Stream:
    """Supplies a part of each batch, or some batches whole.

    What it remembers comes to it in :meth:`learn`, :meth:`follow` or :meth:`learned`; all of these
    do nothing by default.

    Args:
        fraction: of each batch, in (0, 1); None for all that the other streams leave.

    Attributes:
        whole: whether it supplies batches whole, those that are :meth:`due`, and no part of others.
        known: whether its inputs come with the teacher's answers, so that nothing may change them.
        answered: whether its inputs come with the teacher's answers, which are dropped if something
            changes the inputs.
        can_keep_answers: whether it stores the inputs of updates, and can store the teacher's
            answers with them.
        remembers_classes: whether it can give inputs of a class.
        synthesizes: whether what it drew last is new, and so counted as synthesized.
        classless: whether its inputs come without the classes aimed at.
        takes_first: whether it may supply the whole of the first batch after an update.
        follows: whether it learns in :meth:`follow`, for which it needs every such batch.
        losses: losses of its own latest training, detached device scalars.

    Raises:
        ValueError: for a fraction outside of (0, 1).
    """

    whole = False
    known = False
    answered = False
    can_keep_answers = False
    remembers_classes = False
    synthesizes = False
    classless = False
    takes_first = False
    follows = False

    def __init__(self, fraction: float | None = None) -> None:
        if fraction is not None and not 0 < fraction < 1:
            raise ValueError(f"a stream's fraction of a batch lies in (0, 1), not {fraction}")
        self.fraction = fraction
        self.losses: dict[str, Tensor] = {}

    def start(self, synthesizer: Synthesizer, place: Place) -> None:
        """Called once, before the first update.

        Raises:
            ValueError: if it cannot work with this synthesizer, or in this place.
        """

    def keep_answers(self, ask: Ask) -> None:
        """From now on, ask the teacher once about every input of an update that is stored."""
        raise NotImplementedError

    def learn(self, made: Made) -> None:
        """Take in what an update of the synthesizer has made."""

    def follow(self, ahead: Tensor, noise: torch.Generator) -> None:
        """Take in the inputs before its own in the first batch after an update, [B, *shape]."""

    def due(self, turn: int, noise: torch.Generator) -> bool:
        """Whether it supplies the whole of a batch, number ``turn`` after an update, from 0."""
        return False

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        """Inputs [size, *shape] without gradient, with what is known of them."""
        raise NotImplementedError

    def alike(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """For each input another one of its class, where it ``remembers_classes``.

        It is the input itself as long as none of its class was made.

        Raises:
            ValueError: if inputs are aimed at no class.
        """
        raise NotImplementedError

    def learned(self, batch: Batch, losses: Losses) -> None:
        """The student has taken its step on a batch."""

    def counts(self) -> dict[str, int]:
        """Counts that it adds to those of the synthesizer, on this rank so far."""
        return {}

    def plan(self, batches: int) -> Workload:
        """What it asks the teacher in so many batches, and how many it knows the answers to."""
        return Workload()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing, where there is no state."""


class Fresh(Stream):
    """New inputs of the synthesizer.

    Args:
        fraction: of each batch; None for all that the other streams leave.
        reuse: in the first batch after an update, hand on the update's own inputs instead of
            drawing others, as in DAFL's joint training. The teacher's answers come with them, so
            that it is not asked again.
    """

    def __init__(self, fraction: float | None = None, reuse: bool = False) -> None:
        super().__init__(fraction)
        self.reuse = reuse
        self.made: Made | None = None

    @property
    def answered(self) -> bool:  # type: ignore[override]
        return self.reuse and self.period == 1 and self.synthesizer.answers

    def start(self, synthesizer: Synthesizer, place: Place) -> None:
        self.synthesizer, self.period, self.alone = synthesizer, place.period, place.alone
        if not isinstance(synthesizer, Drawing) and not (self.reuse and place.period == 1):
            raise ValueError(
                f"{type(synthesizer).__name__} draws nothing between its updates: use a bank, "
                "generators.bank.Bank, or reuse: true with source.student_steps=1"
            )
        if self.reuse and synthesizer.size < place.size:
            raise ValueError(
                "reuse: true hands the inputs of each update to the student: it needs a "
                f"synthesizer.size of at least {place.size}"
            )

    def plan(self, batches: int) -> Workload:
        first = -(-batches // self.period)  # of the batches after an update
        known = self.reuse and self.alone and self.synthesizer.answers and self.period > 1
        return Workload(known_batches=first if known else 0)

    def learn(self, made: Made) -> None:
        self.made = made if self.reuse else None

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        made, self.made = self.made, None
        self.synthesizes = made is None  # what an update has made is counted already
        if made is None:
            assert isinstance(self.synthesizer, Drawing)
            return self.synthesizer.draw(size, noise)
        input, label, answers = (
            None if x is None else x[:size].to(noise.device)  # a resumed one is on the host
            for x in (made.input, made.label, made.teacher_logits)
        )
        assert input is not None
        return Batch(input, label, teacher_logits=answers)

    def state_dict(self) -> dict[str, Any]:
        made = self.made  # still here if another stream supplied the first batch after the update
        if made is None or self.period == 1:
            return {}
        return {"made": [made.input, made.label, made.teacher_logits]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.made = None
        if "made" in state:
            input, label, answers = state["made"]
            self.made = Made(input, label, teacher_logits=answers)


def sizes_of(streams: Mapping[str, Stream], batch_size: int) -> dict[str, int]:
    """Inputs that each stream supplies of every batch, the stream without a fraction first.

    Raises:
        ValueError: if there is none or another such one, and for a batch that is too small.
    """
    shared = {name: stream for name, stream in streams.items() if not stream.whole}
    rest = [name for name, stream in shared.items() if stream.fraction is None]
    if len(rest) != 1:
        raise ValueError(
            "one of source.streams has no fraction and supplies what the others leave; here "
            f"{' and '.join(rest) or 'none'} would: give every other one a fraction in (0, 1)"
        )
    left, sizes = batch_size, {}
    for name, stream in shared.items():
        if stream.fraction is not None:
            sizes[name] = min(max(1, round(stream.fraction * batch_size)), left - 1)
            left -= sizes[name]
    if min([left, *sizes.values()]) < 1:
        raise ValueError(
            f"batch_size={batch_size} leaves no input for some of source.streams: give a "
            f"batch_size of at least {len(shared)}, or smaller fractions"
        )
    return {rest[0]: left, **sizes}


def check_together(streams: Mapping[str, Stream], pairs: Mapping[str, Pair]) -> None:
    """Refuse streams that do not work beside each other, or with the pairs.

    Raises:
        ValueError: naming them.
    """
    classless = [name for name, stream in streams.items() if stream.classless]
    if "same_class" in pairs.values() and classless:
        raise ValueError(
            f"source.pairs: inputs of source.streams.{classless[0]} have no class, so that none is "
            "of the same class: use pairs of the same_input"
        )
    first = [name for name, stream in streams.items() if stream.takes_first]
    if first and (late := [name for name, stream in streams.items() if stream.follows]):
        raise ValueError(
            f"source.streams.{late[0]} learns from the first batch after every update, and "
            f"source.streams.{first[0]} may be the whole of it: leave one of them out"
        )
