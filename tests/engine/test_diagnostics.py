"""Fréchet distance, diversity, balance and warnings, against closed forms and direct formulas."""

from typing import Any

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor

from engine.diagnostics import (
    Gaussian,
    announce,
    class_balance,
    collapse,
    frechet_distance,
    nearest_neighbour,
)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_sqrtm(x: Tensor, y: Tensor) -> float:
    """Heusel et al. 2017, eq. 6, as it stands."""
    a, b = (v.double().numpy() for v in (x, y))
    c, d = np.cov(a.T), np.cov(b.T)
    product = np.trace(scipy.linalg.sqrtm(c @ d)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c) + np.trace(d) - 2 * product)


def by_loop(x: Tensor) -> float:
    rows = x.double().numpy()
    return float(
        np.mean(
            [
                min(np.linalg.norm(a - b) for j, b in enumerate(rows) if j != i)
                for i, a in enumerate(rows)
            ]
        )
    )


def test_frechet_distance_of_known_gaussians() -> None:
    """With a common basis: Σ (μ₁−μ₂)² + (σ₁−σ₂)², whatever the basis and with a σ of zero."""
    basis = torch.linalg.qr(torch.randn(4, 4, generator=random(0)).double())[0]
    means = torch.randn(2, 4, generator=random(1)).double()
    sigmas = torch.tensor([[1.0, 2.0, 0.0, 3.0], [2.0, 0.5, 1.5, 0.0]]).double()
    a, b = (Gaussian(m, s.diag() @ basis.T) for m, s in zip(means, sigmas, strict=True))
    wanted = (means[0] - means[1]).square().sum() + (sigmas[0] - sigmas[1]).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-12)
    one = Gaussian(means[0], sigmas[0].diag())
    other = Gaussian(means[0] + 1, 2 * sigmas[0].diag())
    assert frechet_distance(one, other) == pytest.approx(4 + 14)


def test_frechet_distance_of_samples() -> None:
    mix = torch.randn(6, 6, generator=random(2))
    x = torch.randn(40, 6, generator=random(3))
    y = torch.randn(70, 6, generator=random(4)) @ mix + 0.5
    assert frechet_distance(Gaussian.of(x), Gaussian.of(y)) == pytest.approx(by_sqrtm(x, y))


@pytest.mark.parametrize("size", [(8, 50), (50, 8)])
def test_equal_sets_are_at_no_distance(size: tuple[int, int]) -> None:
    """With fewer samples than features too, where the covariance is singular."""
    x = torch.randn(*size, generator=random(0))
    assert frechet_distance(Gaussian.of(x), Gaussian.of(x.flip(0))) < 1e-9
    moved = frechet_distance(Gaussian.of(x), Gaussian.of(x + 2))
    assert moved == pytest.approx(4 * size[1], rel=1e-5)
    constant = torch.ones(9, size[1])
    spread = x.double().var(0).sum() + (x.double().mean(0) - 1).square().sum()
    assert frechet_distance(Gaussian.of(x), Gaussian.of(constant)) == pytest.approx(float(spread))


def test_a_gaussian_from_sums_is_that_of_the_samples() -> None:
    """Also far from zero, where float32 sums would leave nothing of the covariance."""
    for size in [(60, 9), (6, 9)]:
        x = torch.randn(*size, generator=random(0)).double() * 0.1 + 100
        direct, sums = Gaussian.of(x), Gaussian.of_sums(len(x), x.sum(0), x.T @ x)
        torch.testing.assert_close(sums.mean, direct.mean)
        for g in (direct, sums):
            covariance = torch.from_numpy(np.cov(x.T.numpy()))
            torch.testing.assert_close(g.root.T @ g.root, covariance, atol=1e-8, rtol=0)


def test_nearest_neighbours() -> None:
    x = torch.randn(60, 7, generator=random(0))
    assert nearest_neighbour(x) == pytest.approx(by_loop(x))
    close = 300 + 1e-2 * x
    assert nearest_neighbour(close) == pytest.approx(by_loop(close), rel=1e-3)
    assert nearest_neighbour(torch.ones(3, 7)) < 1e-6


def test_class_balance() -> None:
    assert class_balance([0.1] * 10) == pytest.approx(1)
    assert class_balance([0.5, 0, 0.5, 0]) == pytest.approx(0.5)
    assert class_balance([0.0, 1.0, 0.0]) == 0
    assert class_balance([0.3, 0.7]) == pytest.approx(0.8813, abs=1e-4)
    assert class_balance([0.1 + 1e-9] * 10) == 1


@pytest.mark.parametrize(
    ("histogram", "count", "said"),
    [
        ([1 / 6] * 6 + [0.0] * 4, 512, None),
        ([0.2, 0.0] * 5, 512, "100% of the synthesized inputs fall into 5 of 10 classes"),
        (
            [0.005] * 8 + [0.48, 0.48],
            512,
            "96% of the synthesized inputs fall into 2 of 10 classes",
        ),
        ([0.01] * 8 + [0.46, 0.46], 512, "95% of the synthesized inputs fall into 5 of 10 classes"),
        ([0.015] * 8 + [0.44, 0.44], 512, None),
        ([0.9, 0.1], 512, None),
        ([0.0, 1.0], 512, "100% of the synthesized inputs fall into 1 of 2 classes"),
        ([0.0] * 97 + [1 / 3] * 3, 3, None),  # three inputs could not do better
        ([0.0] * 99 + [1.0], 3, "100% of the synthesized inputs fall into 1 of 100 classes"),
    ],
)
def test_few_classes_are_told(histogram: list[float], count: int, said: str | None) -> None:
    assert collapse(histogram, count, 1.0).get("few_classes") == said


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_random_classes_are_not_few(classes: int) -> None:
    for seed in range(20):
        drawn = torch.randint(0, classes, (512,), generator=random(seed))
        histogram = (torch.bincount(drawn, minlength=classes) / 512).tolist()
        assert collapse(histogram, 512, 1.0) == {}


def test_near_duplicates_are_told() -> None:
    fine = [0.25] * 4
    for diversity in (None, 0.1, 3.0):
        assert collapse(fine, 512, diversity) == {}
    words = collapse(fine, 512, 0.0213)["near_duplicates"]
    assert "near-duplicates: diversity 0.021" in words
    assert list(collapse([1.0, 0, 0, 0], 512, 0.0999)) == ["few_classes", "near_duplicates"]


def test_a_warning_is_announced_when_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    history: list[dict[str, Any]] = [{}, {"a": "A1"}, {"a": "A2", "b": "B1"}, {}, {"a": "A3"}]
    found = [{"warnings": w} for w in history]
    for step, (before, now) in enumerate(zip([{}, *found[:-1]], found, strict=True)):
        announce(now, before, step)
    wanted = ["warning at step 1: A1", "warning at step 2: B1", "warning at step 4: A3"]
    assert capsys.readouterr().out.splitlines() == wanted
