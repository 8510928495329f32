"""Views of every modality: what they keep, how much of it, and what is where nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kornia.augmentation as K
import pytest
import torch
from omegaconf import OmegaConf

from core.build import build
from data.augment import Kornia, RandomCrop
from data.modality import MODALITIES, Modality
from data.spec import InputSpec
from generators.views import GlobalView, LocalView

IMAGE = InputSpec((3, 12, 10), (-1.0, 1.0), (0.0,) * 3, (1.0,) * 3)
SIGNAL = InputSpec((2, 40), (-1.0, 3.0), (0.5,) * 2, (0.7,) * 2)
VECTOR = InputSpec((6,), (0.0, 1.0), (0.1, 0.2, 0.3, 0.5, 0.4, 0.6), (0.2,) * 6, groups=((1, 4),))
TEXT = InputSpec((4, 7), modality="text", words=("<pad>", "<unk>", "a", "b"))
SPECS = {"image": IMAGE, "signal": SIGNAL, "vector": VECTOR, "text": TEXT}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(spec: InputSpec, count: int = 300) -> torch.Tensor:
    return spec.noise(count, torch.device("cpu"))


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("view", [GlobalView, LocalView])
def test_shape_range_determinism_and_gradient(kind: str, view: Any) -> None:
    spec = SPECS[kind]
    x = inputs(spec).requires_grad_()
    look = view(spec)
    y = look(x, seeded())
    assert torch.equal(look(x, seeded()), y)
    assert y.shape == x.shape
    low, high = spec.range
    assert low - 1e-6 <= y.min() <= y.max() <= high + 1e-6
    still = (view, kind) == (GlobalView, "vector")
    assert torch.equal(y, x) == still
    assert still or not torch.equal(look(x, seeded(1)), y)
    [gradient] = torch.autograd.grad(y.square().sum() + y.sum(), x)
    assert (gradient.flatten(1).abs().sum(1) > 0).float().mean() > 0.99


def test_images_are_seen_as_kornia_crops_them() -> None:
    x = inputs(IMAGE, 20)
    crop = Kornia(IMAGE, [K.RandomResizedCrop((12, 10), scale=(0.25, 1.0))])
    assert torch.equal(LocalView(IMAGE)(x, seeded()), crop(x, seeded()))
    assert torch.equal(GlobalView(IMAGE, 2)(x, seeded()), RandomCrop(IMAGE, 2)(x, seeded()))


@pytest.mark.parametrize("scale", [(0.25, 1.0), (0.5, 0.5), (1.0, 1.0)])
def test_a_stretch_of_a_signal_stays_where_it_is(scale: tuple[float, float]) -> None:
    x = inputs(SIGNAL, 400)
    y = LocalView(SIGNAL, scale)(x, seeded())
    kept = y == x
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert torch.equal(y[~kept], torch.ones((~kept).sum()))  # the middle of the range is silence
    edges = kept[:, 0].int().diff(dim=1).abs().sum(1)
    assert edges.max() <= 2  # in one piece
    length = kept[:, 0].sum(1)
    assert length.min() >= 40 * scale[0]
    assert length.float().mean() / 40 == pytest.approx(sum(scale) / 2, abs=0.03)
    if scale[0] < 1:
        assert kept[:, 0, 0].any()
        assert kept[:, 0, -1].any()


@pytest.mark.parametrize("scale", [(0.25, 1.0), (0.5, 0.5)])
def test_columns_of_a_vector_are_left_to_their_mean(scale: tuple[float, float]) -> None:
    x = inputs(VECTOR, 2000)
    y = LocalView(VECTOR, scale)(x, seeded())
    kept = y == x
    assert torch.equal(y[~kept], torch.tensor(VECTOR.mean).expand_as(y)[~kept])
    assert torch.equal(kept[:, 1], kept[:, 2])
    assert torch.equal(kept[:, 1], kept[:, 3])  # one category
    assert not torch.equal(kept[:, 0], kept[:, 1])
    assert not torch.equal(kept[:, 4], kept[:, 5])
    shares = kept.float().mean(0)
    assert (shares - sum(scale) / 2).abs().max() < 0.05


def test_the_method_names_nothing_but_its_views() -> None:
    """One file for every modality, and its views are built for each."""
    file = Path(__file__).resolve().parents[2] / "configs" / "method" / "cmi.yaml"
    node: Any = OmegaConf.to_container(OmegaConf.load(file).synthesis)
    for spec in SPECS.values():
        for name in ("views", "local_views"):
            [view] = build(node[name], spec=spec)
            assert view(inputs(spec, 3), seeded()).shape == (3, *spec.shape)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5), (0.5,)])
def test_shares_that_are_none(scale: Any) -> None:
    with pytest.raises(ValueError, match="two ascending shares"):
        LocalView(SIGNAL, scale)


@pytest.mark.parametrize("view", [GlobalView, LocalView])
def test_another_modality_names_its_own_views(view: Any) -> None:
    try:
        type("Volume", (Modality,), {"name": "volume", "plural": "volumes", "rank": 4})
        spec = InputSpec((1, 2, 3, 4), modality="volume")
        with pytest.raises(ValueError, match="name views of your own under synthesis"):
            view(spec)
    finally:
        MODALITIES.pop("volume", None)


def test_between_a_quarter_and_all_words_are_kept() -> None:
    x = TEXT.decode(torch.full((4000, 7), 2))
    y = LocalView(TEXT)(x, seeded())
    kept = y[:, 2] == 1
    assert torch.equal(kept, y[:, 1] == 0)
    assert kept.double().mean() == pytest.approx(0.625, abs=0.02)
    alike = kept[:, 0] == kept[:, 1]  # E[s² + (1 - s)²], s uniform in [1/4, 1]
    assert alike.double().mean() == pytest.approx(0.625, abs=0.03)


def test_words_come_back_at_the_other_end() -> None:
    ids = torch.tensor([2, 3, 0, 0, 1, 0, 3])
    seen = TEXT.encode(GlobalView(TEXT, 1)(TEXT.decode(ids.expand(40, -1)), seeded()))
    rolled = {tuple(ids.roll(s).tolist()) for s in (-1, 0, 1)}
    assert {tuple(row) for row in seen.tolist()} == rolled
