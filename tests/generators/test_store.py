"""The store: what it keeps, how it draws, what 8 bits lose, and that it belongs to one run."""

import io

import pytest
import torch
from torch import Tensor

from data.spec import InputSpec
from generators import store as store_module
from generators.store import PER_ENTRY, Policy, Store

SPEC = InputSpec((1, 2, 2), (-1.0, 3.0), (0.0,), (1.0,))
CPU = torch.device("cpu")


def flat(*values: float) -> Tensor:
    """One constant image per value."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, *SPEC.shape)


def held(store: Store) -> set[int]:
    _, labels, _ = store.sample(500, torch.Generator().manual_seed(0))
    return set(labels.tolist())


def test_oldest_images_leave_first() -> None:
    store = Store(SPEC, 5, CPU)
    for start in (0, 3, 6):
        store.add(flat(0.0, 0.0, 0.0), torch.arange(start, start + 3))
    assert len(store) == 5
    assert held(store) == {4, 5, 6, 7, 8}


def test_more_than_fits_at_once() -> None:
    store = Store(SPEC, 3, CPU)
    store.add(flat(0.0), torch.tensor([9]))
    store.add(flat(*[0.0] * 8), torch.arange(8))
    assert held(store) == {5, 6, 7}
    store.add(flat(0.0), torch.tensor([8]))
    assert held(store) == {6, 7, 8}


def test_images_stay_with_their_labels() -> None:
    store = Store(SPEC, 4, CPU)
    for label in range(6):
        store.add(flat(label / 2), torch.tensor([label]))
    images, labels, index = store.sample(50, torch.Generator().manual_seed(1))
    assert images.shape == (50, *SPEC.shape)
    assert index.max() < 4
    torch.testing.assert_close(images[:, 0, 0, 0], labels / 2, atol=4 / 500, rtol=0)


def test_quantization_error() -> None:
    store = Store(SPEC, 1000, CPU)
    values = torch.linspace(-1, 3, 1000)
    store.add(flat(*values.tolist()), torch.arange(1000))
    images, labels, _ = store.sample(3000, torch.Generator().manual_seed(0))
    error = (images[:, 0, 0, 0] - values[labels]).abs().max()
    assert error <= 4 / 510 + 1e-6
    assert images.min() >= -1
    assert images.max() <= 3 + 1e-6


def test_values_out_of_range_are_clamped() -> None:
    store = Store(SPEC, 2, CPU)
    store.add(flat(-9.0, 9.0), torch.tensor([0, 1]))
    images, labels, _ = store.sample(20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(images[:, 0, 0, 0], labels * 4.0 - 1)


@pytest.mark.parametrize("policy", ["fifo", "reservoir"])
@pytest.mark.parametrize("added", [2, 7])
def test_state_round_trip(added: int, policy: Policy) -> None:
    store = Store(SPEC, 5, CPU, policy)
    images = flat(*torch.linspace(-1, 3, added).tolist())
    store.add(images, torch.arange(added), 3, torch.Generator().manual_seed(5))
    file = io.BytesIO()
    torch.save(store.state_dict(), file)
    file.seek(0)
    restored = Store(SPEC, 5, CPU, policy)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for source in (store, restored):
        source.add(flat(0.5), torch.tensor([77]), 4, torch.Generator().manual_seed(6))
    for seed in range(3):
        a = store.sample(10, torch.Generator().manual_seed(seed))
        b = restored.sample(10, torch.Generator().manual_seed(seed))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for name in ("images", "labels", "rounds"):
        kept, again = (getattr(source, name)[: len(source)] for source in (store, restored))
        assert torch.equal(kept, again), name


def test_rounds_stay_with_their_inputs() -> None:
    store = Store(SPEC, 5, CPU)
    for number in range(3):
        store.add(flat(0.0, 0.0, 0.0), torch.full((3,), 10 * number), round=number)
    _, labels, index = store.sample(100, torch.Generator().manual_seed(0))
    assert store.rounds.dtype == torch.int32
    assert torch.equal(10 * store.rounds[index], labels.int())


@pytest.mark.parametrize("sizes", [[1] * 12, [3, 4, 5], [12]])
def test_reservoir_keeps_a_uniform_sample_of_all(sizes: list[int]) -> None:
    """Each of 12 inputs is kept with probability 4/12, however they are added."""
    trials, noise = 1000, torch.Generator().manual_seed(0)
    kept = torch.zeros(trials, 12)
    for trial in range(trials):
        store, start = Store(SPEC, 4, CPU, "reservoir"), 0
        for size in sizes:
            labels = torch.arange(start, start + size)
            store.add(flat(*[0.0] * size), labels, generator=noise)
            start += size
        kept[trial, store.state_dict()["labels"]] = 1
    assert (kept.sum(1) == 4).all()
    deviation = (trials * 1 / 3 * 2 / 3) ** 0.5
    assert (kept.sum(0) - trials / 3).abs().max() < 3.5 * deviation
    pair = trials * (4 * 3) / (12 * 11)  # no two are more often kept together than others
    together = (kept.T @ kept).fill_diagonal_(pair)
    assert (together - pair).abs().max() < 4.5 * pair**0.5


@pytest.mark.parametrize("policy", ["fifo", "reservoir"])
def test_no_slot_is_written_twice_at_once(policy: Policy) -> None:
    """A GPU would write them in any order, and a resumed run would differ."""
    store = Store(SPEC, 8, CPU, policy)
    for seed in range(20):
        slot = store._slots(30, torch.Generator().manual_seed(seed))
        assert slot.min() >= 0
        assert slot.max() == 8  # where what is not kept goes
        assert len(slot[slot < 8].unique()) == len(slot[slot < 8])
        store.added += 30


def test_reservoir_images_stay_with_their_labels() -> None:
    store, noise = Store(SPEC, 8, CPU, "reservoir"), torch.Generator().manual_seed(0)
    for start in range(0, 90, 9):
        labels = torch.arange(start, start + 9)
        store.add(flat(*(labels / 30).tolist()), labels, start, noise)
    images, labels, index = store.sample(200, noise)
    torch.testing.assert_close(images[:, 0, 0, 0], labels / 30, atol=4 / 500, rtol=0)
    assert torch.equal(store.rounds[index], (labels - labels % 9).int())


def test_a_store_that_does_not_fit_lies_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert store_module._place(500, cuda) == cuda
    assert store_module._place(501, cuda) == CPU
    assert store_module._place(10**12, CPU) == CPU
    # what PyTorch keeps for reuse is free
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert store_module._place(700, cuda) == cuda
    assert store_module._place(701, cuda) == CPU


@pytest.mark.parametrize("added", [0, 1, 50, 100])
def test_a_state_takes_no_memory_and_a_file_no_more_than_what_is_filled(added: int) -> None:
    store = Store(SPEC, 100, CPU, answers=3)
    store.add(torch.zeros(added, *SPEC.shape), torch.arange(added), answers=torch.ones(added, 3))
    state = store.state_dict()
    for name in PER_ENTRY:
        whole, kept = getattr(store, name), state[name]
        assert len(kept) == added
        assert kept.dtype == whole.dtype
        assert torch.equal(kept, whole[:added])
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
        assert not added or kept.data_ptr() == whole.data_ptr()


def test_answers_stay_with_their_inputs_whatever_they_are_computed_in() -> None:
    store = Store(SPEC, 4, CPU)
    store.make_room(2)
    for label in range(6):
        answers = torch.tensor([[label, -label]], dtype=torch.float64)
        store.add(flat(label / 2), torch.tensor([label]), answers=answers)
    _, labels, index = store.sample(50, torch.Generator().manual_seed(1))
    assert torch.equal(store.answers_to(index), torch.stack([labels, -labels], 1).float())
    without = Store(SPEC, 4, CPU)
    with pytest.raises(ValueError, match=r"holds \[4, 2\] answers, but this one takes 4 of \[0\]"):
        without.load_state_dict(store.state_dict())


def test_a_new_store_is_empty() -> None:
    """Failure 8: nothing of an earlier run is picked up."""
    Store(SPEC, 2, CPU).add(flat(0.0), torch.tensor([0]))
    fresh = Store(SPEC, 2, CPU)
    assert len(fresh) == 0
    with pytest.raises(AssertionError, match="nothing was added"):
        fresh.sample(1, torch.Generator())


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Store(SPEC, 0, CPU)
    with pytest.raises(ValueError, match="one of fifo, reservoir, not 'lifo'"):
        Store(SPEC, 1, CPU, "lifo")  # type: ignore[arg-type]
    store = Store(SPEC, 5, CPU)
    store.add(flat(0.0, 0.0, 0.0), torch.arange(3))
    with pytest.raises(ValueError, match="continue with the saved settings"):
        Store(SPEC, 2, CPU).load_state_dict(store.state_dict())
