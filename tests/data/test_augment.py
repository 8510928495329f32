"""Augmentation does what it says, within the range, from the given generator alone."""

from typing import Any

import kornia.augmentation as K
import pytest
import torch

from core.build import build
from core.check import check_node
from data.augment import Kornia, RandomAffine, RandomCrop, RandomFlip
from data.spec import InputSpec
from tests.waits import Launches

SPEC = InputSpec((3, 12, 10), (-1.0, 1.0), (0.0,) * 3, (1.0,) * 3)
ALL: list[Any] = [
    RandomCrop(SPEC, 2),
    RandomFlip(SPEC),
    RandomAffine(SPEC),
    Kornia(SPEC, [K.RandomResizedCrop((12, 10), scale=(0.25, 1.0)), K.RandomHorizontalFlip()]),
    Kornia(SPEC, [K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), K.RandomErasing()]),
    Kornia(SPEC, [K.RandomGaussianNoise(p=1.0)]),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, 12, 10, generator=seeded(9)) * 2 - 1


@pytest.mark.parametrize("augment", ALL, ids=lambda a: type(a).__name__)
def test_shape_range_and_determinism(augment: Any) -> None:
    x = images()
    before = x.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(x, seeded())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augment(x, seeded()), first)
    assert not torch.equal(augment(x, seeded(1)), first)
    assert torch.equal(x, before)
    assert first.shape == x.shape
    assert first.min() >= -1 - 1e-6
    assert first.max() <= 1 + 1e-6


def test_crop_shifts_each_image_by_its_own_whole_pixels() -> None:
    x = images()
    shifted = RandomCrop(SPEC, 2)(x, seeded())
    padded = torch.nn.functional.pad(x, [2] * 4, value=-1.0)
    found = set()
    for image, source in zip(shifted, padded, strict=True):
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, source[:, top : top + 12, left : left + 10])
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {top for top, _ in found} == {left for _, left in found} == set(range(5))


def test_flip_mirrors_about_half() -> None:
    x = images(400)
    flipped = RandomFlip(SPEC)(x, seeded())
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    same = (flipped == x).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250
    assert torch.equal(RandomFlip(SPEC, 1.0)(x, seeded()), x.flip(-1))


def test_affine_without_change_is_the_identity() -> None:
    x = images()
    still = RandomAffine(SPEC, degrees=0.0, translate=0.0, scale=0.0)
    torch.testing.assert_close(still(x, seeded()), x, atol=1e-5, rtol=0)


def test_affine_moves_by_at_most_what_was_asked() -> None:
    x = torch.full((200, 3, 12, 10), -1.0)
    x[:, :, 5:7, 4:6] = 1.0
    moved = RandomAffine(SPEC, degrees=0.0, translate=0.2, scale=0.0)(x, seeded()) + 1
    weight = moved[:, 0] / moved[:, 0].sum((1, 2), keepdim=True)
    down = (weight.sum(2) * (torch.arange(12) - 5.5)).sum(1)
    right = (weight.sum(1) * (torch.arange(10) - 4.5)).sum(1)
    assert 2.0 < down.abs().max() <= 2.4 + 1e-3
    assert 1.7 < right.abs().max() <= 2.0 + 1e-3


def test_affine_turns_rigidly_where_sides_differ() -> None:
    """A bar of 8 pixels, turned by 90 degrees, is still 8 long."""
    x = torch.zeros(1, 1, 20, 10)
    x[:, :, 9:11, 1:9] = 1.0
    affine = RandomAffine(InputSpec((1, 20, 10)), degrees=90.0, translate=0.0, scale=0.0)
    turn = torch.Generator()
    best = min(range(300), key=lambda s: 1 - torch.rand(4, 1, generator=turn.manual_seed(s))[0])
    turned = affine(x, turn.manual_seed(best))[0, 0]
    assert turned.sum() == pytest.approx(16, abs=1)
    assert turned[6:14, 4:6].sum() > 14


@pytest.mark.parametrize("channels", [1, 3])
def test_kornia_is_built_from_yaml_and_differentiable(channels: int) -> None:
    spec = InputSpec((channels, 9, 7), (-1.0, 3.0), (0.0,) * channels, (1.0,) * channels)
    augmentations: list[dict[str, Any]] = [
        {"_target_": "kornia.augmentation.RandomResizedCrop", "_partial_": True},
        {"_target_": "kornia.augmentation.RandomAffine", "degrees": 20.0, "translate": [0.1, 0.1]},
        {"_target_": "kornia.augmentation.RandomBrightness", "brightness": [0.8, 1.2]},
    ]
    node = {"_target_": "data.augment.Kornia", "augmentations": augmentations}
    assert check_node(node, "augment") == []
    augment = build(node, spec=spec)
    x = torch.rand(16, channels, 9, 7, generator=seeded()).mul(4).sub(1).requires_grad_()
    y = augment(x, seeded())
    assert y.shape == x.shape
    assert y.min() >= -1
    assert y.max() <= 3
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("scale", [(0.05, 1.0), (0.01, 0.02), (1.0, 1.0)])
def test_kornias_crops_are_cut_at_once(aligned: bool, scale: tuple[float, float]) -> None:
    """The same boxes and, but for rounding, the same pixels as cut one by one, and gradients."""
    settings: Any = {"size": (12, 10), "scale": scale, "align_corners": aligned}
    one_by_one, at_once = (K.RandomResizedCrop(**settings) for _ in range(2))
    x, weight = images().requires_grad_(), torch.randn(64, 3, 12, 10, generator=seeded(3))
    found = []
    for augment in (one_by_one, Kornia(SPEC, [at_once]).augmentations[0]):
        torch.manual_seed(5)
        y = augment(x)
        found.append((y, *torch.autograd.grad((y * weight).sum(), x)))
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=0)


def test_a_batch_is_cut_in_as_few_launches_as_an_image() -> None:
    crop = Kornia(SPEC, [K.RandomResizedCrop((12, 10), scale=(0.25, 1.0))])
    counts = []
    for count in (1, 64):
        with Launches() as launches:
            crop(images(count), seeded())
        counts.append(launches.count)
    assert counts[1] < counts[0] + 10


def test_crops_of_another_kind_are_left_as_they_are() -> None:
    nearest = K.RandomResizedCrop((12, 10), resample="nearest")
    kept = Kornia(SPEC, [nearest]).augmentations[0]
    assert "apply_transform" not in vars(kept)


def test_kornia_computes_in_float32() -> None:
    mixing = Kornia(SPEC, [torch.nn.Conv2d(3, 3, 1)])
    with torch.autocast("cpu", torch.bfloat16):
        assert mixing(images().bfloat16(), seeded()).dtype == torch.float32


def test_kornia_sees_images_in_its_own_range() -> None:
    """Twice as bright means twice the distance from black, which is -1 here."""
    x = images() * 0.25 - 0.5
    brighter = Kornia(SPEC, [K.RandomGamma((1.0, 1.0), (2.0, 2.0), p=1.0)])(x, seeded())
    torch.testing.assert_close(brighter + 1, 2 * (x + 1))


def test_kornia_draws_anew_with_every_call() -> None:
    """Two views from one generator differ, and so do two of them in a row."""
    x, noise = images(), seeded()
    view = Kornia(SPEC, [K.RandomRotation(90.0, p=1.0)])
    assert not torch.equal(view(x, noise), view(x, noise))
    first, second = (K.RandomHorizontalFlip() for _ in range(2))
    noise = seeded()
    twice = Kornia(SPEC, [second])(Kornia(SPEC, [first])(x, noise), noise)
    assert not torch.allclose(twice, x, atol=1e-6)  # the same draw would mirror back


def test_kornia_mistakes() -> None:
    with pytest.raises(ValueError, match="needs augmentations"):
        Kornia(SPEC, [])
    with pytest.raises(ValueError, match=r"RandomCrop makes .* give it the size \[12, 10\]"):
        Kornia(SPEC, [K.RandomCrop((5, 5))])(images(), seeded())
    grey = InputSpec((1, 12, 10))
    with pytest.raises(ValueError, match=r"ColorJitter fails on images of shape \(1, 12, 10\)"):
        Kornia(grey, [K.ColorJitter(hue=0.1, p=1.0)])(images()[:, :1], seeded())
