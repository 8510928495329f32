"""Counting what a network answers."""

from __future__ import annotations

import pytest
import torch

from data.spec import InputSpec
from models.classifier import Classifier
from models.digits import DigitsCNN
from models.meter import Meter, queries

X = torch.rand(3, 1, 8, 8)


def metered() -> tuple[Classifier, Classifier]:
    """A network, and its view with a meter."""
    plain = Classifier(DigitsCNN(1, 10, width=4), InputSpec((1, 8, 8)))
    return plain, plain.metered(Meter())


def test_the_count_survives_a_checkpoint() -> None:
    meter, other = Meter(), Meter()
    meter.add(7)
    other.load_state_dict(meter.state_dict())
    assert other.queries == 7


def test_a_network_and_its_views_share_a_meter() -> None:
    plain, counted = metered()
    plain(X)
    assert counted.meter.queries == 0
    torch.testing.assert_close(counted(X).logits, plain.eval()(X).logits)
    view = counted.frozen(["stage1"], statistics=True)  # whose own look at noise is no query
    view(X)
    assert counted.meter.queries == 6
    assert not counted.state_dict().keys() - plain.state_dict().keys()


def test_a_pass_may_be_left_out() -> None:
    _, counted = metered()
    with counted.uncounted():
        counted(X)
    counted(X)
    assert counted.meter.queries == 3


def test_what_is_over_the_limit_is_neither_answered_nor_counted() -> None:
    meter = Meter(5)
    meter.add(3)
    with pytest.raises(ValueError, match=r"at most 5 queries .* 3 were made, and 3 more"):
        meter.add(3)
    assert meter.queries == 3


def test_all_meters_below_a_module_are_summed() -> None:
    both = torch.nn.ModuleList([Meter(), torch.nn.Sequential(Meter())])
    both[0].add(2)
    both[1][0].add(3)
    assert queries(both) == 5
