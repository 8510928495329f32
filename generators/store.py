"""A store of synthesized inputs that belongs to its run."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from core.memory import check_memory, free_memory
from data.spec import InputSpec

Policy = Literal["fifo", "reservoir"]
PER_ENTRY = ("images", "labels", "rounds", "answers")


class Store:
    """At most ``capacity`` inputs as their modality stores them, with their class and round.

    ``fifo`` keeps the latest inputs. ``reservoir`` keeps a uniform sample of all that were ever
    added (Algorithm R, Vitter 1985). Both draw uniformly.

    A value of an image is off by at most 1/510 of the range, unless inputs are kept as they are.
    Inputs are on the device if they take
    no more than half of its free memory, and otherwise on the host, where each draw has to wait for
    the device; so are the answers. Nothing else here waits for it, and every random choice comes
    from the given generator.

    Args:
        spec: of the inputs.
        capacity: how many are kept.
        device: of the drawn inputs, and of the given generators.
        policy: which inputs are kept.
        answers: how many values of a teacher's answer are kept with each input.
        exact: keep inputs in float32, as they are.

    Attributes:
        images, labels, rounds, answers: by slot; the last slot receives what is not kept.

    Raises:
        ValueError: for a capacity below 1, or a policy that does not exist.
    """

    def __init__(
        self,
        spec: InputSpec,
        capacity: int,
        device: torch.device,
        policy: Policy = "fifo",
        answers: int = 0,
        exact: bool = False,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a store's capacity must be at least 1, not {capacity}")
        if policy not in get_args(Policy):
            raise ValueError(
                f"a store's policy must be one of {', '.join(get_args(Policy))}, not {policy!r}"
            )
        self.spec = spec
        self.capacity = capacity
        self.device = device
        self.policy = policy
        self.added = 0
        self.exact = exact and not spec.kind.discrete  # words are exact as they are stored
        shape, storage = spec.stored, spec.kind.storage
        if self.exact:
            shape, storage = spec.shape, torch.float32
        self.images = self._slots_for(torch.Size(shape), storage)
        self.labels = torch.empty(capacity + 1, dtype=torch.int64, device=device)
        self.rounds = torch.empty(capacity + 1, dtype=torch.int32, device=device)
        self.make_room(answers)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def make_room(self, answers: int) -> None:
        """Keep so many values of a teacher's answer with each input, while none is stored yet."""
        assert not len(self), "inputs are stored already"
        self.answers = self._slots_for(torch.Size([answers]), torch.float32)

    def check_memory(self, count: int) -> None:
        """Check that so many inputs, or the capacity, fit into memory, which only they will fill.

        What lies on a device was found to fit there.

        Raises:
            ValueError: for more bytes than the machine has.
        """
        count = min(count, self.capacity)
        kept = [x[0] for x in (self.images, self.answers) if x.device.type == "cpu"]
        needed = count * sum(one.numel() * one.element_size() for one in kept)
        what = f"the {count:,} inputs {list(self.spec.shape)} that it stores"
        check_memory(needed, what, "set a smaller source.streams.NAME.capacity=...")

    def add(
        self,
        images: Tensor,
        labels: Tensor,
        round: int = 0,
        generator: torch.Generator | None = None,
        answers: Tensor | None = None,
    ) -> None:
        """Take in images [B, *shape], clamped to the range, and their labels [B].

        Args:
            round: of synthesis that they come from; one number for all.
            generator: what a reservoir chooses with; fifo needs none.
            answers: a teacher's logits on the inputs, where they are kept.
        """
        slot = self._slots(len(images), generator)
        place = self.images.device
        self.images[slot.to(place)] = self._stored(images).to(place)
        if answers is not None:
            self.answers[slot.to(self.answers.device)] = answers.detach().to(self.answers)
        self.labels[slot] = labels.to(self.device)
        self.rounds.index_fill_(0, slot, round)
        self.added += len(images)

    def sample(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw with replacement: images [size, *shape] in the range, labels and indices [size].

        An index points into ``rounds`` and ``answers`` too, until the next :meth:`add`.
        """
        assert len(self), "nothing was added yet"
        index = torch.randint(len(self), (size,), generator=generator, device=self.device)
        return self.at(index), self.labels[index], index

    def at(self, index: Tensor) -> Tensor:
        """The inputs [B, *shape] in these slots [B]."""
        return self._restore(self._drawn(self.images, index))

    def answers_to(self, index: Tensor) -> Tensor:
        """The answers [B, C] to the inputs in these slots [B]."""
        return self._drawn(self.answers, index)

    def rounded(self, images: Tensor) -> Tensor:
        """These inputs as :meth:`sample` would return them, rounded to what is stored."""
        return self._restore(self._stored(images))

    def state_dict(self) -> dict[str, Any]:
        """Its tensors share its own memory if that is on the host, and hold only the filled
        slots; from a device they are copied to the host.

        They may be most of the memory that there is, and a file holds a tensor's whole storage.
        """
        filled = {name: getattr(self, name)[: len(self)].cpu().numpy() for name in PER_ENTRY}
        kept = {name: torch.from_numpy(array) for name, array in filled.items()}
        return kept | {"added": self.added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the whole content.

        Raises:
            ValueError: if the state is of a store of another capacity or shape, or with other
                answers.
        """
        filled = min(state["added"], self.capacity)
        for name, what in (("images", "inputs"), ("answers", "answers")):
            shape, taken = list(state[name].shape), list(getattr(self, name).shape[1:])
            if shape != [filled, *taken]:
                raise ValueError(
                    f"the saved store holds {shape} {what}, but this one takes {self.capacity} of "
                    f"{taken}: continue with the saved settings"
                )
        self.added = state["added"]
        for name in PER_ENTRY:
            getattr(self, name)[:filled].copy_(state[name])

    def _slots_for(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Room for every slot, and for what is not kept."""
        slots = self.capacity + 1
        place = _place(slots * shape.numel() * dtype.itemsize, self.device)
        return torch.empty((slots, *shape), dtype=dtype, device=place)

    def _drawn(self, kept: Tensor, index: Tensor) -> Tensor:
        """What is kept in these slots, on the device."""
        drawn = kept[index.to(kept.device)]
        if drawn.device.type != self.device.type:  # page-locked, so that the copy holds up nothing
            drawn = drawn.pin_memory()
        return drawn.to(self.device, non_blocking=True)

    def _stored(self, images: Tensor) -> Tensor:
        return images.detach().float() if self.exact else self.spec.encode(images)

    def _restore(self, stored: Tensor) -> Tensor:
        return stored if self.exact else self.spec.decode(stored).contiguous()

    def _slots(self, size: int, generator: torch.Generator | None) -> Tensor:
        """The slot of each new input [size]: none twice, except the slot for what is not kept."""
        item = torch.arange(self.added, self.added + size, device=self.device)
        if self.policy == "reservoir":
            assert generator is not None, "a reservoir needs a generator to choose with"
            u = torch.rand(size, dtype=torch.float64, generator=generator, device=self.device)
            drawn = (u * (item + 1)).long()  # the n-th input stays with probability capacity / n
            slot = torch.where(item < self.capacity, item, drawn).clamp_max(self.capacity)
        else:
            slot = item % self.capacity
        order = torch.arange(size, device=self.device)
        last = order.new_full((self.capacity + 1,), -1).scatter_reduce_(0, slot, order, "amax")
        return torch.where(last[slot] == order, slot, self.capacity)  # the last one wins


def _place(size: int, device: torch.device) -> torch.device:
    if device.type == "cuda" and size > free_memory(device) // 2:
        return torch.device("cpu")
    return device
