"""The source of data-free distillation: batches mixed from streams of synthesized inputs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.objective import Losses
from core.runtime import Runtime, Stopped
from data.augment import Augmentation, through
from data.pairs import Pair, checked
from data.spec import Batch
from generators.base import Ask, Synthesizer, Workload
from generators.streams import Place, Stream, check_together, sizes_of

UPDATES = 2**30  # more than a run makes


class Mixture:
    """A synthesizer's updates, and batches for the student in between.

    An update comes before every ``student_steps`` batches, and its inputs are shown to every
    stream. A batch consists of what the streams supply, or is that of a stream which supplies it
    whole. So the student may get new inputs, stored ones and those of a model of the past in any
    proportion, which keeps it from forgetting.

    Args:
        synthesizer: makes the inputs.
        streams: by name. One of them has no fraction and supplies what the others leave; its inputs
            come first, and the others' behind them in this order.
        runtime: device and noise.
        batch_size: of the student's batches, on each rank.
        steps: batches in the whole run, over which learning rates and weights of losses follow
            their schedules.
        student_steps: batches between two updates.
        augment: augmentations, in order, of what the student gets.
        pairs: further views of each batch, by name: for each input another one of the same class
            from a stream that remembers some, or the same input; augmented anew.
        warmup: updates before the first one that a batch follows; losses that read the student,
            which knows nothing yet, are left out.
        ask_teacher: gives the teacher's answers; None where batches need none.

    Raises:
        ValueError: for counts out of range, streams that leave no room for each other, and one that
            does not work with the synthesizer.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        streams: Mapping[str, Stream],
        runtime: Runtime,
        batch_size: int,
        steps: int,
        student_steps: int = 1,
        augment: Sequence[Augmentation] = (),
        warmup: int = 0,
        pairs: Mapping[str, Pair] | None = None,
        ask_teacher: Ask | None = None,
    ) -> None:
        if min(batch_size, student_steps) < 1 or warmup < 0:
            raise ValueError("batch_size and student_steps must be at least 1, and warmup 0")
        self.synthesizer, self.streams, self.runtime = synthesizer, dict(streams), runtime
        self.batch_size, self.steps, self.student_steps = batch_size, steps, student_steps
        self.augment, self.warmup = tuple(augment), warmup
        self.sizes = sizes_of(self.streams, batch_size)
        self.whole = [stream for stream in self.streams.values() if stream.whole]
        self.pairs = checked(pairs, ("same_class", "same_input"))
        remembering = [s for s in self.streams.values() if s.remembers_classes]
        if "same_class" in self.pairs.values() and not remembering:
            raise ValueError(
                "source.pairs: inputs of the same class come from a bank, and source.streams has "
                "none: add {_target_: generators.bank.Bank}, with a fraction beside other streams"
            )
        self.remembering = next(iter(remembering), None)
        check_together(self.streams, self.pairs)
        self._start()
        self.in_rounds = synthesizer.plan().updates > 0
        self.period = 1 if self.in_rounds else student_steps  # ``plan`` counts rounds
        self.batches = self.updates = self.drawn = 0
        self.asking = self._keep_answers(ask_teacher) if ask_teacher else []

    def next(self) -> Batch:
        updated = self._update()
        noise = self.runtime.noise("batch", self.batches)
        turn = self.batches % self.student_steps
        due = (s for s in self.whole if s.due(turn, noise))
        if (whole := next(due, None)) is None:
            batch = self._compose(noise, updated)
        else:
            batch = whole.draw(self.batch_size, noise)
            self.drawn += self.batch_size if whole.synthesizes else 0
        views = {name: self._partner(name, batch) for name in self.pairs}
        if whole is None or not whole.known:
            batch = self._changed(batch)
        self.batches += 1
        return dataclasses.replace(batch, views=views) if views else batch

    def learned(self, batch: Batch, losses: Losses) -> None:
        for stream in self.streams.values():
            stream.learned(batch, losses)

    def report(self) -> dict[str, Tensor | float]:
        found = self.synthesizer.report()
        for stream in self.streams.values():
            found |= stream.losses
        return found

    def counts(self) -> dict[str, int]:
        """Each image counts once, however often it is seen."""
        counts = Counter(images_synthesized=self.drawn, real_training_inputs_read=0)
        counts.update(self.synthesizer.counts())
        for stream in self.streams.values():
            counts.update(stream.counts())
        return dict(counts)

    def plan(self, steps: int) -> Workload:
        """The work of updates and streams; see :class:`~generators.base.Workload`."""
        updates = self._updates(steps)
        work = self.synthesizer.plan().times(updates)
        if not self.in_rounds:  # then only those before the first batch are no part of the steps
            work.updates += self.warmup
        work.answers += len(self.asking) * updates * self.synthesizer.size
        for stream in self.streams.values():
            work += stream.plan(steps)
        if self._answered():
            work.known_batches = steps
        return work

    def practice(self, updates: int) -> int:
        """See :class:`~generators.base.Practising`."""
        if self.in_rounds:
            count = min(updates, self.synthesizer.plan().updates)
            self._show(0.0, count)
            self.updates = UPDATES
            return count
        self.updates, count = 0, min(updates, self.warmup)
        for _ in range(count):
            self._show(0.0)
        self.updates = self.warmup
        return count

    def state_dict(self) -> dict[str, Any]:
        return {
            "synthesizer": self.synthesizer.state_dict(),
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
            "batches": self.batches,
            "updates": self.updates,
            "drawn": self.drawn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.synthesizer.load_state_dict(state["synthesizer"])
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
        self.batches, self.updates = state["batches"], state["updates"]
        self.drawn = state["drawn"]

    def _updates(self, steps: int) -> int:
        """How many come before the last of so many batches."""
        return self.warmup - (-steps // self.student_steps)

    def _answered(self, keeping: Collection[Stream] = ()) -> bool:
        """Whether every batch brings the teacher's answers if these streams keep theirs too."""
        streams = self.streams.values()
        known = (s.known or s.answered or s in keeping for s in streams)
        return not self.augment and all(known)

    def _keep_answers(self, ask: Ask) -> list[Stream]:
        """Let streams keep answers where that is cheaper; returns those that do.

        The teacher is then asked once about each input that a run stores, in place of once about
        each that the student gets, but for those whose answers are known. An answer is in vain if
        its batch has to be asked anyway.
        """
        able = [stream for stream in self.streams.values() if stream.can_keep_answers]
        stored = len(able) * self._updates(self.steps) * self.synthesizer.size
        known = (s.plan(self.steps).known_batches for s in self.whole if s.known)
        if not self._answered(able) or stored >= (self.steps - sum(known)) * self.batch_size:
            return []
        for stream in able:
            stream.keep_answers(ask)
        return able

    def _start(self) -> None:
        """Tell every stream its place, and the synthesizer it works with."""
        places, ahead = {}, 0
        mixed = len(self.sizes) > 1 or self.augment or any(not s.known for s in self.whole)
        for name, size in self.sizes.items():
            places[name] = Place(size, ahead, self.student_steps, not mixed)
            ahead += size
        for name, stream in self.streams.items():
            place = places.get(name, Place(self.batch_size, 0, self.student_steps))
            try:
                stream.start(self.synthesizer, place)
            except ValueError as error:
                raise ValueError(f"source.streams.{name}: {error}") from error

    def _update(self) -> bool:
        """Make the updates that are due; returns whether there were any."""
        due = self.warmup + self.batches // self.student_steps + 1
        if self.updates >= due:
            return False
        while self.updates < due:
            if self.updates < self.warmup and self.runtime.asked_to_stop(self.updates):
                raise Stopped
            self._show(self.batches / self.steps)
            self.updates += 1
        return True

    def _show(self, progress: float, iterations: int | None = None) -> None:
        """Make an update and show its inputs to every stream."""
        knows = self.updates >= self.warmup
        made = self.synthesizer.update(progress, knows, iterations)
        for stream in self.streams.values():
            stream.learn(made)

    def _compose(self, noise: torch.Generator, updated: bool) -> Batch:
        """A batch of every stream's part, drawn in order."""
        batch: Batch | None = None
        for place, (name, size) in enumerate(self.sizes.items()):
            stream = self.streams[name]
            which = f" {place}" if place > 1 else ""
            if batch is not None:
                if updated:
                    learn = self.runtime.noise(f"replay_learn{which}", self.batches)
                    stream.follow(batch.input, learn)
                noise = self.runtime.noise(f"replay_draw{which}", self.batches)
            drawn = stream.draw(size, noise)
            self.drawn += size if stream.synthesizes else 0
            batch = drawn if batch is None else _joined(batch, drawn)
        assert batch is not None
        return batch

    def _partner(self, name: str, batch: Batch) -> Tensor:
        """The inputs of a view, for those of a batch that nothing has changed yet."""
        noise, images = self.runtime.noise(f"pair {name}", self.batches), batch.input
        if self.pairs[name] == "same_class":
            assert self.remembering is not None
            try:
                images = self.remembering.alike(batch, noise)
            except ValueError as error:
                raise ValueError(f"source.pairs: {error}") from error
        return through(self.augment, images, noise)

    def _changed(self, batch: Batch) -> Batch:
        """The batch as the student gets it; answers to inputs that were changed are dropped."""
        images = through(self.augment, batch.input, self.runtime.noise("augment", self.batches))
        if images is batch.input:
            return batch
        return dataclasses.replace(batch, input=images, teacher_logits=None)


def _joined(first: Batch, second: Batch) -> Batch:
    """The second behind the first; of labels and answers, those that both have."""

    def both(name: str) -> Tensor | None:
        parts = [getattr(batch, name) for batch in (first, second)]
        return None if any(part is None for part in parts) else torch.cat(parts)

    images = torch.cat([first.input, second.input])
    return Batch(images, both("label"), teacher_logits=both("teacher_logits"))
