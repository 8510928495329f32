"""What a network is shown of an input."""

from __future__ import annotations

import kornia
import numpy as np
import pytest
import torch
from torch import Tensor

from data import transforms
from data.spec import InputSpec
from data.transforms import (
    LUMA,
    Channels,
    Chroma,
    Edges,
    FourierMagnitude,
    Luminance,
    Resize,
    Transform,
)
from engine.choices import TRANSFORM, files, written
from engine.config import ConfigError, compose
from models.classifier import Classifier
from models.digits import DigitsCNN

SPEC = InputSpec((2, 8, 6), (-1.0, 3.0), (0.0, 1.0), (1.0, 1.0))
COLOUR = InputSpec((3, 8, 6), (-1.0, 3.0), (0.0,) * 3, (1.0,) * 3)
X = -1 + 4 * torch.rand(5, 2, 8, 6)


def test_fourier_magnitude_is_that_of_numpy() -> None:
    expected = np.log1p(np.abs(np.fft.rfft2((X.numpy() + 1) / 4))) / np.log1p(48)
    found = FourierMagnitude(SPEC)(X)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape == (5, 2, 8, 4)
    ones = FourierMagnitude(SPEC)(torch.full((1, 2, 8, 6), 3.0))
    assert ones.max().item() == pytest.approx(1.0)


def test_edges_are_kornias_and_lie_in_the_unit_range() -> None:
    x = (X + 1) / 4
    slope = kornia.filters.sobel(x, normalized=True, eps=0.0) * 8 / 20**0.5
    expected = (slope.square() + 0.05**2).sqrt() - 0.05
    torch.testing.assert_close(Edges(SPEC, smooth=0.05)(X), expected)
    steepest = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]) * 4 - 1
    found = Edges(SPEC, smooth=1e-6)(steepest.expand(1, 2, 3, 3))
    assert found[0, 0, 1, 1].item() == pytest.approx(1.0, abs=1e-5)


def test_flat_areas_have_no_edges_and_a_gradient() -> None:
    x = torch.full((1, 2, 8, 6), 0.7, requires_grad=True)
    edges = Edges(SPEC)(x)
    assert edges.abs().max() < 1e-6
    edges.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_luminance_and_chroma_are_kornias_and_give_the_image_back() -> None:
    x = -1 + 4 * torch.rand(4, 3, 8, 6)
    y, c = Luminance(COLOUR)(x), Chroma(COLOUR)(x)
    expected = kornia.color.rgb_to_ycbcr((x + 1) / 4)  # whose factors have three digits
    torch.testing.assert_close(torch.cat([y, c], dim=1), expected, atol=1e-3, rtol=0)
    red, blue = (y + (c[:, i : i + 1] - 0.5) * s for i, s in ((1, 1.402), (0, 1.772)))
    torch.testing.assert_close(torch.cat([red, blue], 1), (x[:, [0, 2]] + 1) / 4)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 3.0])] * 3).view(8, 3, 1, 1)
    seen = Chroma(COLOUR)(corners)
    torch.testing.assert_close(seen.amin((0, 2, 3)), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.amax((0, 2, 3)), torch.ones(2))


def test_nothing_of_luminance_shows_in_chroma() -> None:
    """So that a teacher of luminance leaves the chroma of a synthesized image undetermined."""
    x = (torch.rand(2, 3, 8, 6) * 2).requires_grad_()
    Luminance(COLOUR)(x).square().sum().backward()
    assert x.grad is not None
    moved = Chroma(COLOUR)(x + 0.5)
    torch.testing.assert_close(moved, Chroma(COLOUR)(x))  # grey may be added
    step = x.grad - x.grad.mean(dim=1, keepdim=True)  # what of the gradient could change a colour
    torch.testing.assert_close(
        step / x.grad.sum(1, keepdim=True),
        (torch.tensor(LUMA) - 1 / 3).view(1, 3, 1, 1).expand_as(step),  # one fixed direction
    )


@pytest.mark.parametrize("kind", [FourierMagnitude, Edges, Luminance, Chroma])
def test_gradients(kind: type[Transform]) -> None:
    spec = COLOUR if kind in (Luminance, Chroma) else SPEC
    x = torch.rand(1, *spec.shape, dtype=torch.float64)[..., :4, :4].requires_grad_()
    assert torch.autograd.gradcheck(kind(spec), (x,))  # type: ignore[call-arg]


def test_a_constant_channel_has_no_scale() -> None:
    """It may vary later, and is not to be blown up then."""
    assert Channels(SPEC, [0]).measured(SPEC, torch.ones(4, 2, 8, 6)).std == (1.0,)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (FourierMagnitude(SPEC), (2, 8, 4)),
        (Edges(SPEC), (2, 8, 6)),
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
    for kind in (FourierMagnitude, Edges):
        with pytest.raises(ValueError, match="is for images, but the inputs are vectors"):
            kind(InputSpec((1,)))
    with pytest.raises(ValueError, match="above 0"):
        Edges(SPEC, smooth=0.0)
    for kind in (Luminance, Chroma):
        with pytest.raises(ValueError, match="colour"):
            kind(SPEC)
    with pytest.raises(ValueError, match="from 0 to 1"):
        Channels(SPEC, [2])
    with pytest.raises(ValueError, match="height"):
        Resize([4])


@pytest.mark.parametrize("name", sorted(path.stem for path in files(TRANSFORM)))
def test_every_transform_with_a_name_can_be_chosen_by_it(name: str) -> None:
    chosen = compose([f"student.transform={name}", f"teacher.transform={name}"])
    assert chosen.student.transform == chosen.teacher.transform == written(TRANSFORM, name)
    with pytest.raises(ConfigError, match=f"did you mean '{name}'") as caught:
        compose([f"student.transform={name}x"])
    assert len(caught.value.mistakes) == 1


def test_a_setting_of_a_transform_that_was_chosen_by_name() -> None:
    chosen = compose(["student.transform.mels=16", "student.transform=log_mel"])
    assert chosen.student.transform == {**written(TRANSFORM, "log_mel"), "mels": 16}
    peer = "students={peer: {model: digits_cnn, transform: log_mel}}"
    words = [peer, "students.peer.model.width=4", "students.peer.transform.hop=64"]
    node = compose(["method=mutual_crossmodal", *words]).students.peer
    assert (node.model.width, node.transform.hop) == (4, 64)
    node = compose(["method=mutual_crossmodal", "students.peer.mean=[0.5]"]).students.peer
    assert node.mean == [0.5]  # as a model card's command says
    with pytest.raises(ConfigError, match=r"students\.peer\.means: no such key"):
        compose(["method=mutual_crossmodal", "students.peer.means=[0.5]"])
    with pytest.raises(ConfigError, match=r"student\.transform\.mel: no .*did you mean 'mels'"):
        compose(["student.transform=log_mel", "student.transform.mel=16"])


class Windowed(Transform):
    """One that has a buffer, as :class:`data.spectrograms.LogMel` does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.window)[..., None]


def test_it_is_measured_where_the_inputs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, for which the meta device stands: it mixes with a CPU's tensors as little."""
    monkeypatch.setattr(transforms, "moments", lambda x: ((0.0, 0.0), (1.0, 1.0)))
    inputs = torch.empty(4, 2, 8, 6, device="meta")
    assert Windowed().measured(SPEC, inputs).shape == (2, 8, 1)
