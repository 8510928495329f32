"""Views of inputs of every modality: nearly all of one, and a part."""

from __future__ import annotations

import pytest
import torch

from data.augment import Kornia, RandomCrop
from data.spec import InputSpec
from data.views import nearly_whole, part

SPECS = {
    "image": InputSpec((1, 8, 8)),
    "signal": InputSpec((2, 101), (-1.0, 1.0), (0.0,) * 2, (1.0,) * 2),
    "vector": InputSpec((6,), mean=(0.3,) * 6, std=(0.2,) * 6),
    "text": InputSpec((4, 7), modality="text", words=("<pad>", "<unk>", "a", "b")),
}


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", SPECS)
def test_views_can_be_drawn_again_and_take_a_gradient(kind: str) -> None:
    spec = SPECS[kind]
    for view in (nearly_whole(spec), part(spec)):
        x = spec.noise(20, torch.device("cpu")).requires_grad_()
        y = view(x, draw())
        assert y.shape == x.shape
        assert torch.equal(y, view(x, draw()))
        assert spec.range[0] <= y.min() <= y.max() <= spec.range[1]
        [gradient] = torch.autograd.grad(y.square().sum(), x)
        assert gradient.isfinite().all()
        assert gradient.any()
    with pytest.raises(ValueError, match=r"least=0\.25"):
        part(spec, 0.0)


def test_images_are_seen_as_before() -> None:
    assert isinstance(nearly_whole(SPECS["image"]), RandomCrop)
    assert isinstance(part(SPECS["image"]), Kornia)


def test_a_piece_of_a_ramp_is_a_ramp() -> None:
    x = torch.linspace(-1, 1, 101).expand(50, 2, -1)
    y = part(SPECS["signal"], 0.25)(x, draw())
    steps = y.diff(dim=2)
    torch.testing.assert_close(steps, steps[..., :1].expand_as(steps), atol=1e-6, rtol=0)
    share = steps[:, 0, 0] / 0.02
    assert 0.25 <= share.min() < 0.4 < 0.9 < share.max() <= 1


@pytest.mark.parametrize("kind", ["vector", "text"])
def test_between_a_quarter_and_all_is_kept(kind: str) -> None:
    spec = SPECS[kind]
    x = torch.full((4000, 6), 0.9) if kind == "vector" else spec.decode(torch.full((4000, 7), 2))
    y = part(spec, 0.25)(x, draw())
    kept = y == 0.9 if kind == "vector" else y[:, 2] == 1
    blank = y == 0.3 if kind == "vector" else y[:, 1] == 1
    assert torch.equal(kept, ~blank)
    assert kept.double().mean() == pytest.approx(0.625, abs=0.02)
    alike = kept[:, 0] == kept[:, 1]  # E[s² + (1 - s)²], s uniform in [1/4, 1]
    assert alike.double().mean() == pytest.approx(0.625, abs=0.03)


def test_words_come_back_at_the_other_end() -> None:
    spec = SPECS["text"]
    ids = torch.tensor([2, 3, 0, 0, 1, 0, 3])
    seen = spec.encode(nearly_whole(spec, 1)(spec.decode(ids.expand(40, -1)), draw()))
    rolled = {tuple(ids.roll(s).tolist()) for s in (-1, 0, 1)}
    assert {tuple(row) for row in seen.tolist()} == rolled


def test_vectors_stay() -> None:
    x = torch.rand(3, 6)
    assert torch.equal(nearly_whole(SPECS["vector"])(x, draw()), x)
