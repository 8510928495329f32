"""The bank: first in, first out, what 8 bits lose, and that it belongs to one run."""

import io

import pytest
import torch
from torch import Tensor

from data.spec import InputSpec
from generators.bank import Bank

SPEC = InputSpec((1, 2, 2), (-1.0, 3.0), (0.0,), (1.0,))
CPU = torch.device("cpu")


def flat(*values: float) -> Tensor:
    """One constant image per value."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, *SPEC.shape)


def held(bank: Bank) -> set[int]:
    _, labels, _ = bank.sample(500, torch.Generator().manual_seed(0))
    return set(labels.tolist())


def test_oldest_images_leave_first() -> None:
    bank = Bank(SPEC, 5, CPU)
    for start in (0, 3, 6):
        bank.add(flat(0.0, 0.0, 0.0), torch.arange(start, start + 3))
    assert len(bank) == 5
    assert held(bank) == {4, 5, 6, 7, 8}


def test_more_than_fits_at_once() -> None:
    bank = Bank(SPEC, 3, CPU)
    bank.add(flat(0.0), torch.tensor([9]))
    bank.add(flat(*[0.0] * 8), torch.arange(8))
    assert held(bank) == {5, 6, 7}
    bank.add(flat(0.0), torch.tensor([8]))
    assert held(bank) == {6, 7, 8}


def test_images_stay_with_their_labels() -> None:
    bank = Bank(SPEC, 4, CPU)
    for label in range(6):
        bank.add(flat(label / 2), torch.tensor([label]))
    images, labels, index = bank.sample(50, torch.Generator().manual_seed(1))
    assert images.shape == (50, *SPEC.shape)
    assert index.max() < 4
    torch.testing.assert_close(images[:, 0, 0, 0], labels / 2, atol=4 / 500, rtol=0)


def test_quantization_error() -> None:
    bank = Bank(SPEC, 1000, CPU)
    values = torch.linspace(-1, 3, 1000)
    bank.add(flat(*values.tolist()), torch.arange(1000))
    images, labels, _ = bank.sample(3000, torch.Generator().manual_seed(0))
    error = (images[:, 0, 0, 0] - values[labels]).abs().max()
    assert error <= 4 / 510 + 1e-6
    assert images.min() >= -1
    assert images.max() <= 3 + 1e-6


def test_values_out_of_range_are_clamped() -> None:
    bank = Bank(SPEC, 2, CPU)
    bank.add(flat(-9.0, 9.0), torch.tensor([0, 1]))
    images, labels, _ = bank.sample(20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(images[:, 0, 0, 0], labels * 4.0 - 1)


@pytest.mark.parametrize("added", [2, 7])
def test_state_round_trip(added: int) -> None:
    bank = Bank(SPEC, 5, CPU)
    bank.add(flat(*torch.linspace(-1, 3, added).tolist()), torch.arange(added))
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    restored = Bank(SPEC, 5, CPU)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for source in (bank, restored):
        source.add(flat(0.5), torch.tensor([77]))
    for seed in range(3):
        a = bank.sample(10, torch.Generator().manual_seed(seed))
        b = restored.sample(10, torch.Generator().manual_seed(seed))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_state_is_a_copy() -> None:
    bank = Bank(SPEC, 2, CPU)
    bank.add(flat(0.0, 0.0), torch.tensor([1, 1]))
    state = bank.state_dict()
    bank.add(flat(0.0), torch.tensor([2]))
    assert state["labels"].tolist() == [1, 1]


def test_a_new_bank_is_empty() -> None:
    """Failure 8: nothing of an earlier run is picked up."""
    Bank(SPEC, 2, CPU).add(flat(0.0), torch.tensor([0]))
    fresh = Bank(SPEC, 2, CPU)
    assert len(fresh) == 0
    with pytest.raises(AssertionError, match="nothing was added"):
        fresh.sample(1, torch.Generator())


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Bank(SPEC, 0, CPU)
    bank = Bank(SPEC, 5, CPU)
    bank.add(flat(0.0, 0.0, 0.0), torch.arange(3))
    with pytest.raises(ValueError, match="continue with the saved settings"):
        Bank(SPEC, 2, CPU).load_state_dict(bank.state_dict())
