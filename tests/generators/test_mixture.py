"""What a batch consists of, with either synthesizer, and that a resume goes on in the middle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.objective import Losses
from core.runtime import Runtime, Stopped
from data.augment import RandomAffine
from data.spec import Batch
from engine.queries import planned_queries
from generators.bank import Bank
from generators.experience import Experience
from generators.mixture import Mixture
from generators.networks import StandardGenerator
from generators.replay import EMAGenerator
from generators.rounds import Rounds
from generators.spaceship import FeatureExchange
from generators.streams import Fresh, Stream
from generators.variables import Generated
from tests.generators.small import CLASSES, SPEC, generative, inversion, same
from tests.generators.test_mosaic import OutOfDomainInputs, domain
from tests.generators.test_vae import vae
from tests.test_contracts import learn, make

RUNTIME = Runtime(device="cpu")
STREAMS: dict[str, Callable[[], Stream]] = {
    "bank": lambda: Bank(SPEC, RUNTIME, CLASSES, 20, fraction=0.3),
    "vae": lambda: vae(fraction=0.3),
    "out_of_domain": lambda: OutOfDomainInputs(domain(), 0.3),
    "experience": lambda: Experience(SPEC, CLASSES, RUNTIME, batches=1, capacity=30),
    "exchange": lambda: FeatureExchange(RUNTIME, capacity=20, probability=0.5),
    "ema": lambda: EMAGenerator(CLASSES, RUNTIME, fraction=0.3),
    "fresh": lambda: Fresh(fraction=0.3),
    "reuse": lambda: Fresh(fraction=0.3, reuse=True),
}
PERIOD = {"reuse": 1}


def lasting() -> Generated:
    """What rounds may train for good, so that its features can be exchanged."""
    torch.manual_seed(0)
    network = StandardGenerator(SPEC, CLASSES, latent_size=5, channels=8)
    return Generated(network, RUNTIME, lr_latent=None, lifetime=0)


def mixed(name: str, rounds: bool, **kwargs: Any) -> Mixture:
    """The stream beside a bank of rounds, or beside fresh inputs of a trained generator."""
    settings = {"student_steps": PERIOD.get(name, 3), "batch_size": 10, **kwargs}
    if rounds:
        return inversion(streams={"other": STREAMS[name]()}, variable=lasting(), **settings)
    return generative(streams={"other": STREAMS[name]()}, size=16, **settings)


def steps(source: Mixture, count: int) -> list[Batch]:
    """Batches, with answers to those that have none."""
    batches = []
    for _ in range(count):
        batches.append(batch := source.next())
        known = batch.teacher_logits
        answers = batch.input.flatten(1)[:, :CLASSES] if known is None else known
        source.learned(batch, Losses(torch.zeros(()), {}, answers))
    return batches


@pytest.fixture(params=[False, True], ids=["trained", "rounds"])
def rounds(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


WORKING = [(name, False) for name in STREAMS]
WORKING += [(name, True) for name in STREAMS if name not in ("fresh", "ema")]


@pytest.mark.parametrize(("name", "rounds"), WORKING)
def test_each_stream_works_with_both_synthesizers_and_resumes(name: str, rounds: bool) -> None:
    """To the same bits, in the middle of a period."""
    first = mixed(name, rounds)
    steps(first, 5)
    torch.manual_seed(99)
    second = mixed(name, rounds)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for a in steps(first, 7):
        [b] = steps(second, 1)
        assert a.input.shape == (10, *SPEC.shape)
        assert not a.input.requires_grad
        assert torch.equal(a.input, b.input)
    assert same(*(_flat(source.state_dict()) for source in (first, second)))
    assert first.counts() == second.counts()
    updates = 12 // PERIOD.get(name, 3)
    assert first.updates == updates
    size, synthesizes = first.synthesizer.size, first.streams["other"].synthesizes
    assert first.synthesizer.counts()["images_synthesized"] == updates * size
    if not rounds and not first.streams["other"].whole:
        assert first.drawn == 12 * (7 + 3 * synthesizes)


def _flat(state: Any, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, (dict, list)):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        parts = [_flat(value, f"{path}.{key}") for key, value in pairs]
        return {key: value for part in parts for key, value in part.items()}
    return {path: torch.as_tensor(-1.0 if state is None else state)}


def test_parts_stand_in_order_and_come_from_their_streams() -> None:
    source = generative(
        streams={"bank": STREAMS["bank"](), "other": STREAMS["out_of_domain"]()}, batch_size=10
    )
    assert source.sizes == {"fresh": 4, "bank": 3, "other": 3}
    drawn: dict[str, torch.Tensor] = {}
    for name, stream in source.streams.items():
        draw = stream.draw

        def recorded(size: int, noise: Any, draw: Any = draw, name: str = name) -> Batch:
            batch: Batch = draw(size, noise)
            drawn[name] = batch.input
            return batch

        stream.draw = recorded  # type: ignore[method-assign]
    for _ in range(3):
        batch = source.next()
        assert torch.equal(batch.input, torch.cat([drawn[n] for n in ("fresh", "bank", "other")]))
        assert batch.index is None
        assert batch.label is None
    assert not torch.equal(drawn["bank"], drawn["other"])
    noise = torch.Generator().manual_seed(0)
    assert source.streams["bank"].draw(4, noise).label is None, "a generator without classes"


def test_a_bank_beside_a_generator_stores_what_updates_were_made_on() -> None:
    source = generative(streams={"bank": STREAMS["bank"]()}, conditional=True, student_steps=2)
    made = []
    update = source.synthesizer.update
    source.synthesizer.update = lambda *a: made.append(update(*a)) or made[-1]  # type: ignore
    batches = [source.next() for _ in range(4)]
    store = source.streams["bank"].store
    assert len(made) == 2
    rounded = torch.cat([store.rounded(m.input) for m in made])
    assert torch.equal((store.rounded(rounded) * 255).round().to(torch.uint8), store.images[:16])
    assert torch.equal(torch.cat([m.label for m in made]), store.labels[:16])
    assert store.rounds[:16].tolist() == [0] * 8 + [1] * 8
    assert all(batch.label is not None and batch.label.min() >= 0 for batch in batches)


def test_warm_up_updates_come_first_with_either_synthesizer(rounds: bool) -> None:
    source = mixed("bank", rounds, warmup=2)
    ran: list[int] = []
    source.synthesizer.observe.student.register_forward_hook(lambda *_: ran.append(source.updates))
    for _ in range(3):
        source.next()
    assert source.updates == 3
    assert set(ran) == {2}
    source.next()
    assert set(ran) == {2, 3}


def test_a_stop_in_the_warm_up() -> None:
    runtime = Runtime("cpu")
    source = generative(runtime, warmup=3)
    runtime.stop_requested = True
    with pytest.raises(Stopped):
        source.next()
    assert source.batches == source.updates == 0
    runtime.stop_requested = False
    source.next()
    runtime.stop_requested = True
    source.next()  # from now on a run stops between its steps


def test_whole_batches_are_no_mixture() -> None:
    source = generative(
        streams={"experience": STREAMS["experience"](), "bank": STREAMS["bank"]()},
        augment=[RandomAffine(SPEC, 20.0)],
        student_steps=3,
    )
    batches = steps(source, 6)
    known = [batch.teacher_logits is not None for batch in batches]
    assert known == [False, False, True] * 2
    for batch in batches:  # those known are stored ones as they are, not augmented again
        assert torch.equal(source.streams["experience"].store.rounded(batch.input), batch.input)
    stored = {x.numpy().tobytes() for batch in batches[:2] for x in batch.input}
    assert all(x.numpy().tobytes() in stored for x in batches[2].input)


def test_rounds_without_a_bank_hand_on_their_inputs() -> None:
    made = inversion()
    source = Mixture(made.synthesizer, {"fresh": Fresh(reuse=True)}, RUNTIME, 6, 20)
    assert isinstance(source.synthesizer, Rounds)
    a, b = source.next(), source.next()
    assert a.label is not None
    assert not torch.equal(a.input, b.input)
    assert source.counts()["images_synthesized"] == 16


def test_what_comes_before_batches_is_practised(rounds: bool) -> None:
    source = mixed("bank", rounds)
    assert source.period == (1 if rounds else 3)
    assert source.practice(2) == (2 if rounds else 0)
    assert source.practice(9) == (5 if rounds else 0)
    before = source.updates
    source.next()
    assert (source.updates == before) is rounds, "batches after it come without a round"


def test_the_warm_up_is_practised_and_planned() -> None:
    source, without = generative(warmup=4, student_steps=2), generative(student_steps=2)
    assert source.plan(6).updates == 4
    assert without.plan(6).updates == 0
    assert (source.practice(1), source.practice(3), source.practice(9)) == (1, 3, 4)
    for _ in range(3):
        source.next()
    assert source.updates == 4 + 2


BOX = "teacher.black_box={_target_: models.black_box.BlackBox, directions: 2}"
ONE_HOT = "+synthesis.losses.onehot={weight: 1.0, loss: {_target_: generators.losses.OneHot}}"
ADAM = "{_target_: torch.optim.Adam, _partial_: true}"
BANK = "+source.streams.bank={_target_: generators.bank.Bank, fraction: 0.3}"
REPLAY = (
    "+source.streams.replay={_target_: generators.replay.VAE, decoder: '${generator}', "
    f"fraction: 0.3, optimizer: {ADAM}" + "}"
)
EXPERIENCE = "+source.streams.experience={_target_: generators.experience.Experience, batches: 1}"


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("dfme", [ONE_HOT, BANK, REPLAY, EXPERIENCE, "source.warmup=2"]),
        ("adi", [BOX, "~synthesis.losses.bn", REPLAY, EXPERIENCE, "source.warmup=1"]),
        ("fast_dfkd", [BOX, "~synthesis.losses.bn", "source.warmup=2"]),
        ("fast_dfkd", [BOX, "~synthesis.losses.bn", "source.warmup=2", "synthesizer.size=24"]),
    ],
)
def test_the_plan_counts_what_is_asked(method: str, overrides: list[str]) -> None:
    parts, _ = make(method, *overrides, "source.student_steps=3")
    for done in range(1, 9):
        learn(parts, 1)
        plan = planned_queries(parts.teacher, parts.source, parts.distiller, 8, done)  # type: ignore
        assert parts.counts()["teacher_queries"] == plan


def test_pairs_from_a_bank() -> None:
    """A partner is an input of the bank and of the same class; what repeats the input is it."""
    pairs: Any = {"partner": "same_class", "again": "same_input"}
    source = inversion(pairs=pairs, batch_size=24)
    for _ in range(3):
        batch = source.next()
        store = source.streams["bank"].store  # type: ignore[attr-defined]
        assert batch.label is not None
        kept = store.at(torch.arange(len(store)))
        for partner, label in zip(batch.views["partner"], batch.label, strict=True):
            found = [i for i, x in enumerate(kept) if torch.equal(x, partner)]
            assert label in store.labels[found]
        assert torch.equal(batch.views["again"], batch.input)
    assert not torch.equal(batch.views["partner"], batch.input)
    augmented = inversion(pairs=pairs, augment=[RandomAffine(SPEC, 20.0)])
    batch = augmented.next()
    assert not torch.equal(batch.views["again"], batch.input)


def test_self_distillation_without_data() -> None:
    """CS-KD's loss on the inputs of a bank, in a run's own words."""
    loss = "{teacher: student@partner, loss: {_target_: distillers.response.KD}}"
    pairs = "source.pairs={partner: same_class}"
    parts, _ = make("fast_dfkd", pairs, f"+distiller.losses.cskd={loss}")
    losses = parts.distiller(parts.source.next())
    assert losses.values["cskd"] > 0
