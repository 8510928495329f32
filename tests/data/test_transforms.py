"""What a network is shown of an input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.spec import InputSpec
from data.transforms import Channels, FourierMagnitude, Resize, Transform
from models.classifier import Classifier
from models.digits import DigitsCNN

SPEC = InputSpec((2, 8, 6), (-1.0, 3.0), (0.0, 1.0), (1.0, 1.0))
X = -1 + 4 * torch.rand(5, 2, 8, 6)


def test_fourier_magnitude_is_that_of_numpy() -> None:
    expected = np.log1p(np.abs(np.fft.rfft2((X.numpy() + 1) / 4))) / np.log1p(48)
    found = FourierMagnitude(SPEC)(X)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape == (5, 2, 8, 4)
    ones = FourierMagnitude(SPEC)(torch.full((1, 2, 8, 6), 3.0))
    assert ones.max().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (FourierMagnitude(SPEC), (2, 8, 4)),
        (Channels(SPEC, [1]), (1, 8, 6)),
        (Resize([4, 4]), (2, 4, 4)),
    ],
)
def test_a_network_is_shown_what_the_transform_gives(
    transform: Transform, shape: tuple[int, ...]
) -> None:
    spec = transform.measured(SPEC, X)
    assert spec.shape == shape
    low, high = spec.range
    with torch.no_grad():
        seen = transform(X)
    assert low <= seen.min()
    assert seen.max() <= high
    torch.testing.assert_close(torch.tensor(spec.mean), seen.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(spec.std), seen.std((0, 2, 3), correction=0))
    module = DigitsCNN(shape[0], 3, 4)
    network = Classifier(module, spec, transform=transform, takes=SPEC).eval()
    expected = module(spec.normalize(seen))
    for one in (network, network.frozen(["stage1"]), network.apart().eval()):
        torch.testing.assert_close(one(X).logits, expected)
    x = X.clone().requires_grad_()
    network(x).logits.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="images"):
        FourierMagnitude(InputSpec((1,)))
    with pytest.raises(ValueError, match="from 0 to 1"):
        Channels(SPEC, [2])
    with pytest.raises(ValueError, match="height"):
        Resize([4])
