"""Columns that are one category: their shares sum to 1 in whatever makes inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data.categories import relaxed
from data.spec import InputSpec
from generators.networks import OUTPUTS, StandardGenerator
from generators.variables import Pixels
from models.checkpoint import read_description, save_network
from models.classifier import Classifier
from models.vectors import MLP

GROUPS = ((1, 4), (4, 6), (7, 8))  # two side by side, and one of a single column
SPEC = InputSpec((8,), (-1.0, 3.0), (0.5,) * 8, (0.7,) * 8, groups=GROUPS)
PLAIN = InputSpec((8,), (-1.0, 3.0), (0.5,) * 8, (0.7,) * 8)


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def shares(x: torch.Tensor) -> list[torch.Tensor]:
    """The blocks of inputs in the range -1..3, as shares."""
    return [(x[:, a:b] + 1) / 4 for a, b in GROUPS]


def test_a_block_is_the_softmax_of_its_logits() -> None:
    x = torch.randn(3, 8, generator=noise())
    found, other = relaxed(x, GROUPS), x.sigmoid()
    torch.testing.assert_close(found[:, 1:4], x[:, 1:4].softmax(1))
    torch.testing.assert_close(found[:, 4:6], x[:, 4:6].softmax(1))
    assert torch.equal(found[:, 7], torch.ones(3))
    assert torch.equal(found[:, [0, 6]], other[:, [0, 6]])
    assert torch.equal(relaxed(x, ()), other)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_generator_respects_categories(output: str) -> None:
    torch.manual_seed(0)
    net = StandardGenerator(SPEC, 2, latent_size=5, channels=8, output=output)
    z = torch.randn(6, 5, generator=noise())
    torch.manual_seed(1)
    x = net(3 * z)
    for block in shares(x):
        torch.testing.assert_close(block.sum(1), torch.ones(6))
        assert block.min() >= 0
    net.spec = PLAIN
    torch.manual_seed(1)
    torch.testing.assert_close(net(3 * z)[:, [0, 6]], x[:, [0, 6]])
    weight = net.stages[-1].linear.weight  # type: ignore[union-attr]
    assert isinstance(weight, torch.Tensor)
    [gradient] = torch.autograd.grad(x[:, 2].sum(), weight)
    for half in gradient.chunk(2):  # means, and log standard deviations
        assert half[1:4].abs().sum() > 0
        assert half[[0, 4, 5, 6, 7]].abs().sum() == 0


def test_a_scaled_output_begins_with_what_the_teacher_expects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    mean = (0.3, 0.2, 0.5, 0.3, 0.9, 0.1, 0.6, 1.0)
    spec = InputSpec((8,), (0.0, 1.0), mean, (0.3,) * 8, groups=GROUPS)
    net = StandardGenerator(spec, 2, channels=8, output="scaled")
    for parameter in net.stages[-1].parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(net(torch.randn(2, 100)), torch.tensor([mean] * 2))


def test_pixels_are_shares() -> None:
    variable = Pixels(SPEC)
    [group] = variable.begin(torch.zeros(6, dtype=torch.int64), 0, noise())
    for _ in range(2):
        x, _ = variable()
        for block in shares(x):
            torch.testing.assert_close(block.sum(1), torch.ones(6))
            assert block.min() >= -1e-6
        assert x[:, 0].std() > 0.1
        assert group["params"][0].requires_grad
        with torch.no_grad():
            variable.pixels += torch.randn(6, 8, generator=noise())
        variable.after_step()
    stored = SPEC.encode(variable()[0])
    for a, b in GROUPS:
        torch.testing.assert_close(stored[:, a:b].sum(1), torch.ones(6))


def test_categories_travel_with_a_teachers_file(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    save_network(file, Classifier(MLP(8, 2, [4]), SPEC, ("a", "b")), {})
    values = read_description(file)
    classes = values.pop("classes")
    assert InputSpec(**values) == SPEC
    assert classes == ("a", "b")
    assert "groups" not in PLAIN.to_dict()


@pytest.mark.parametrize(
    "groups", [[[0, 9]], [[2, 1]], [[1, 1]], 3, [[1.0, 2]], [[0, 2], [1, 3]], [[1, 2, 3]], ["ab"]]
)
def test_groups_that_are_none(groups: Any) -> None:
    with pytest.raises(ValueError, match="groups are ascending blocks"):
        InputSpec((8,), mean=(0.5,) * 8, std=(0.7,) * 8, groups=groups)
    with pytest.raises(ValueError, match="of the columns of a vector"):
        InputSpec((1, 8), groups=((0, 2),))
