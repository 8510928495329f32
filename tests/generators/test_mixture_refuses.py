"""Streams and pairs that do not fit together, and pairs of a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from data.spec import Batch
from generators.bank import Bank
from generators.mixture import Mixture
from generators.streams import Fresh
from tests.generators.small import CLASSES, SPEC, generative, inversion
from tests.generators.test_mixture import RUNTIME, STREAMS, mixed


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: mixed("fresh", True), r"streams\.other: Rounds draws nothing .* use a bank"),
        (lambda: mixed("ema", True), r"streams\.other: Rounds has no generator that draws"),
        (
            lambda: inversion(streams={"exchange": STREAMS["exchange"]()}),
            r"streams\.exchange: it exchanges features of a StandardGenerator that lasts",
        ),
        (
            lambda: generative(streams={"bank": Bank(SPEC, RUNTIME, CLASSES)}),
            "fresh and bank would",
        ),
        (lambda: Mixture(generative().synthesizer, {}, RUNTIME, 6, 20), "none would"),
        (lambda: mixed("bank", False, batch_size=1), "batch_size of at least 2"),
        (lambda: mixed("bank", False, warmup=-1), "warmup 0"),
        (
            lambda: generative(streams={k: STREAMS[k]() for k in ("vae", "exchange")}),
            r"streams\.vae learns from the first batch .* source\.streams\.exchange may be the",
        ),
        (
            lambda: generative(
                streams={k: STREAMS[k]() for k in ("bank", "exchange")},
                pairs={"partner": "same_class"},
            ),
            r"source\.pairs: inputs of source\.streams\.exchange have no class, .* same_input",
        ),
        (lambda: Bank(SPEC, RUNTIME, CLASSES, fraction=1.0), r"lies in \(0, 1\)"),
        (
            lambda: Mixture(
                inversion().synthesizer, {"fresh": Fresh(reuse=True)}, RUNTIME, 6, 20, 2
            ),
            r"draws nothing between .* with source\.student_steps=1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make_it: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()


def test_an_input_whose_class_the_bank_lacks_is_its_own_partner() -> None:
    source = inversion(pairs={"partner": "same_class"}, capacity=40)
    source.next()
    bank = source.streams["bank"]
    assert isinstance(bank, Bank)
    kept, aim = bank.store.labels[:8].clone(), bank.store.labels[0].clone()
    bank.store.labels[:8] = torch.where(kept == aim, (aim + 1) % CLASSES, kept)
    bank.classes = None
    batch = Batch(torch.rand(3, *SPEC.shape), torch.stack([aim, (aim + 1) % CLASSES, aim]))
    found = bank.alike(batch, torch.Generator())
    assert [torch.equal(a, b) for a, b in zip(found, batch.input, strict=True)] == [
        True,
        False,
        True,
    ]


def test_pairs_of_a_class_need_a_bank_and_classes() -> None:
    pairs: Any = {"partner": "same_class"}
    with pytest.raises(ValueError, match=r"source\.streams has none: add .*Bank"):
        generative(pairs=pairs)
    unlabelled = generative(pairs=pairs, streams={"bank": Bank(SPEC, RUNTIME, CLASSES, 20, 0.3)})
    with pytest.raises(ValueError, match="aimed at no class"):
        unlabelled.next()
    with pytest.raises(ValueError, match="no alike; there is: same_class, same_input"):
        generative(pairs={"partner": "alike"})
