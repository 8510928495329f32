"""Epochs, ranks, resume and counting of real data as a source."""

from typing import Any

import numpy as np
import pytest
import torch

from core.runtime import Runtime
from data.augment import RandomCrop
from data.dataset import DataFreeError, Dataset
from data.source import RealSource, balanced
from data.spec import InputSpec

SPEC = InputSpec((1, 8, 8))


def dataset(runtime: Runtime, count: int = 40) -> Dataset:
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8), np.arange(count) % 4
    return Dataset("x", {"train": lambda: arrays}, list("abcd"), runtime)


def source(rank: int = 0, ranks: int = 1, seed: int = 0, **options: Any) -> RealSource:
    runtime = Runtime(device="cpu", seed=seed)
    runtime.rank, runtime.world_size = rank, ranks
    options = {"batch_size": 8, "augment": [RandomCrop(SPEC, 2)], **options}
    return RealSource(dataset(runtime, options.pop("count", 40)), runtime, **options)


def indices(source: RealSource, steps: int) -> list[list[int]]:
    return [source.next().index.tolist() for _ in range(steps)]  # type: ignore[union-attr]


def flat(steps: list[list[int]]) -> list[int]:
    return [row for step in steps for row in step]


def test_an_epoch_covers_each_row_once_in_an_order_of_its_own() -> None:
    real = source()
    epochs = [flat(indices(real, 5)) for _ in range(2)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] != flat(indices(source(seed=1), 5))


def test_rows_and_labels_belong_together() -> None:
    real = source(augment=())
    batch = real.next()
    assert batch.index is not None
    x, label = real.split.batch(batch.index)
    assert torch.equal(batch.input, x)
    assert batch.input is batch.input
    assert torch.equal(batch.label, label)  # type: ignore[arg-type]


def test_the_last_incomplete_batch_is_left_out() -> None:
    real = source(count=21)
    steps = indices(real, 4)
    assert [len(step) for step in steps] == [8] * 4
    assert not set(steps[0]) & set(steps[1])
    assert real.batches_per_epoch == 2


def test_a_limit_leaves_the_same_balanced_rows_at_every_seed() -> None:
    few = [source(limit=12, seed=seed) for seed in (0, 1)]
    rows = [sorted(set(flat(indices(real, 4)))) for real in few]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 12
    assert np.bincount(np.array(rows[0]) % 4).tolist() == [3, 3, 3, 3]
    assert rows[0] != list(range(12))
    assert few[0].counts()["real_training_inputs_read"] == 4 * 8
    assert source(limit=4).next().index.shape == (4,)  # type: ignore[union-attr]
    assert indices(source(limit=40), 1) != indices(source(), 1)
    with pytest.raises(ValueError, match=r"source\.limit"):
        source(limit=0)


def test_balanced_orders_take_turns_even_where_classes_differ_in_size() -> None:
    labels = np.array([0] * 6 + [1] * 2 + [2] * 4)
    order = balanced(labels)
    assert sorted(order.tolist()) == list(range(12))
    assert sorted(labels[order[:6]].tolist()) == [0, 0, 1, 1, 2, 2]
    assert sorted(labels[order[:10]].tolist()) == [0] * 4 + [1] * 2 + [2] * 4


def test_a_small_set_is_used_whole() -> None:
    assert [sorted(step) for step in indices(source(count=5), 3)] == [list(range(5))] * 3
    parts = [indices(source(rank, 2, count=6), 1)[0] for rank in range(2)]
    assert sorted(flat(parts)) == list(range(6))
    with pytest.raises(ValueError, match="2 process"):
        source(0, 2, count=1)


def test_ranks_take_disjoint_parts_of_one_order() -> None:
    first, second = (indices(source(rank, 2, batch_size=4), 5) for rank in range(2))
    assert sorted(flat(first + second)) == list(range(40))
    together = indices(source(batch_size=8), 5)
    assert [a + b for a, b in zip(first, second, strict=True)] == together


def test_ranks_draw_different_augmentation() -> None:
    real = [source(rank, 2, batch_size=20) for rank in range(2)]
    for one in real:
        one._order = 0, torch.arange(40) % 20
    images = [one.next().input for one in real]
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_a_resumed_source_continues_to_the_same_bits(steps: int) -> None:
    whole, before, resumed = source(), source(), source()
    for _ in range(steps):
        whole.next()
        before.next()
    torch.rand(3)  # the global random state is of no account
    resumed.load_state_dict(before.state_dict())
    for _ in range(4):
        a, b = whole.next(), resumed.next()
        assert torch.equal(a.input, b.input)
        assert torch.equal(a.index, b.index)  # type: ignore[arg-type]
    assert whole.counts() == resumed.counts()


def test_counts_what_it_read() -> None:
    real = source()
    assert real.counts()["real_training_inputs_read"] == 0
    indices(real, 3)
    assert real.counts() == {
        "images_synthesized": 0,
        "real_training_inputs_read": 24,
    }
    assert real.report() == {}


def test_closed_training_data_is_no_source() -> None:
    runtime = Runtime(device="cpu")
    data = dataset(runtime)
    data.close_training()
    with pytest.raises(DataFreeError):
        RealSource(data, runtime, 8)


def test_a_pair_is_of_the_same_class_or_the_same_input() -> None:
    real = source(augment=(), pairs={"partner": "same_class", "again": "same_input"})
    rows = real.split.batch(slice(0, 40))[0].flatten(1)
    labels = real.split.labels
    chosen = set()
    for _ in range(20):
        batch = real.next()
        assert batch.label is not None
        assert torch.equal(batch.views["again"], batch.input)
        partner = batch.views["partner"].flatten(1)
        found = (partner[:, None] == rows).all(2).int().argmax(1)
        assert torch.equal(labels[found], batch.label)
        chosen |= set(found.tolist())
    assert chosen == set(range(40)), "every row is drawn, the same one too"
    assert real.counts()["real_training_inputs_read"] == 20 * 3 * 8 + 40


def test_a_pair_is_augmented_anew_and_repeats_after_a_resume() -> None:
    whole, resumed = (source(pairs={"again": "same_input"}) for _ in range(2))
    batch = whole.next()
    assert not torch.equal(batch.views["again"], batch.input)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(whole.next().views["again"], resumed.next().views["again"])


def test_pairs_come_from_the_rows_that_a_limit_leaves() -> None:
    real = source(augment=(), limit=8, pairs={"partner": "same_class"})
    kept = real.split.batch(torch.from_numpy(real.rows))[0].flatten(1)
    partner = real.next().views["partner"].flatten(1)
    assert (partner[:, None] == kept).all(2).any(1).all()


def test_an_unknown_kind_of_pair() -> None:
    with pytest.raises(ValueError, match="there is: same_class, same_input"):
        source(pairs={"partner": "same"})


def test_inputs_with_a_label_come_first_and_the_rest_have_none() -> None:
    real = source(labels=12, labelled=0.25)
    batches = [real.next() for _ in range(30)]
    assert all(batch.labelled == 2 and batch.label is not None for batch in batches)
    labels = torch.stack([batch.label for batch in batches])  # type: ignore[misc]
    rows = torch.stack([batch.index for batch in batches])  # type: ignore[misc]
    assert torch.equal(labels[:, :2], rows[:, :2] % 4)
    assert (labels[:, 2:] == -1).all()
    known = balanced(np.arange(40) % 4)[:12]
    assert sorted(rows[:6, :2].flatten().tolist()) == sorted(known)  # each once in an epoch
    assert len(rows[:4, 2:].unique()) == 24
    assert set(rows[:, 2:].flatten().tolist()) == set(range(40)) - set(known)
    other = source(labels=12, labelled=0.25, seed=1)
    assert {r for b in indices(other, 6) for r in b[:2]} == set(known)


def test_ranks_share_the_labels_and_a_resumed_source_goes_on() -> None:
    ranks = [source(rank, 2, labels=12, labelled=0.5) for rank in (0, 1)]
    seen = [[r for b in indices(real, 1) for r in b[:4]] for real in ranks]
    assert not set(seen[0]) & set(seen[1])
    first, second = source(labels=3), source(labels=3)  # fewer than half a batch
    assert first.next().labelled == 3
    second.load_state_dict(first.state_dict())
    assert indices(first, 9) == indices(second, 9)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"labels": 33}, "at most 32, so that enough of the 40 training inputs are without"),
        ({"labels": 0}, "at least 1"),
        ({"labels": 8, "labelled": 1.0}, "labelled=1.0"),
        ({"labels": 8, "batch_size": 1}, "at least 2 inputs"),
        ({"labels": 8, "pairs": {"partner": "same_class"}}, "pairs of the same class need all"),
    ],
)
def test_labels_that_cannot_be(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        source(**options)


def test_a_shuffled_pair_is_always_the_same_and_a_permutation() -> None:
    real = source(augment=(), pairs={"other": "shuffled"}, limit=16)
    found: dict[int, torch.Tensor] = {}
    inputs, _ = real.split.batch(slice(0, 40))
    for _ in range(4):
        batch = real.next()
        assert batch.index is not None
        for row, x in zip(batch.index.tolist(), batch.views["other"], strict=True):
            other = int((inputs == x).all(dim=(1, 2, 3)).nonzero())
            assert found.setdefault(row, other) == other
    assert sorted(found) == sorted(found.values())  # of the 16 that the limit leaves
    assert sum(row != other for row, other in found.items()) > 8
    again = source(augment=(), pairs={"other": "shuffled"}, limit=16, seed=5)
    assert not torch.equal(again.others, real.others)
