"""BatchNorm layers that run twice or never, and taps that do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from core.objective import Objective, Weighted
from data.spec import InputSpec
from generators.losses import BatchNormStatistics
from generators.observer import unread_statistics
from models.check import check_network
from models.classifier import Classifier

SPEC = InputSpec((1, 8, 8), mean=(0.3,), std=(0.4,))


class Net(nn.Module):
    """``norm`` runs twice, ``auxiliary`` in training alone, ``never`` not at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.auxiliary, self.never = (nn.BatchNorm2d(4) for _ in range(3))
        self.first, self.head = nn.BatchNorm2d(1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.norm(self.a(x)).relu()
        if self.training:
            self.auxiliary(y)
        return self.head((y + self.norm(5 * self.b(x))).relu().mean((2, 3)))


def test_a_layer_that_runs_twice_has_one_entry_which_real_inputs_fit() -> None:
    classifier, x = Classifier(Net(), SPEC), SPEC.noise(64, torch.device("cpu"))
    for _ in range(200):
        classifier.train()(x)
    view = classifier.frozen(statistics=True)
    assert view.idle == ("auxiliary", "never")
    first, norm = view(x).statistics
    assert first.running_mean is view.module.first.running_mean  # type: ignore[union-attr]
    for found, known in [
        (norm.mean, norm.running_mean),
        (norm.variance, norm.running_variance),
    ]:
        assert float((found - known).norm() / known.norm()) < 0.15


def test_statistics_that_eval_mode_skips_are_left_out_with_a_line() -> None:
    objective = Objective({"bn": Weighted(BatchNormStatistics())})
    [line] = unread_statistics(Classifier(Net(), SPEC), objective)
    assert line == "synthesis: eval mode does not run the teacher's auxiliary, never: left out"

    class Training(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else x.flatten(1)[:, :5]

    unused = Classifier(Training(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 5)), SPEC)
    with pytest.raises(ValueError, match="Training runs no BatchNorm layer in eval mode"):
        unread_statistics(unused, objective)


@pytest.mark.parametrize(
    ("tap", "message"),
    [("norm", "'norm' of Net runs 2 times in eval"), ("never", "'never' of Net does not run in")],
)
def test_a_tap_runs_once(tap: str, message: str) -> None:
    for build in (
        lambda: Classifier(Net(), SPEC).frozen([tap]),
        lambda: check_network(Classifier(Net(), SPEC, taps=[tap]), 5),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_a_copy_has_hooks_of_its_own() -> None:
    classifier, x = Classifier(Net(), SPEC, taps=["a"], statistics=True), torch.rand(2, 1, 8, 8)
    twin = copy.deepcopy(classifier)
    assert [*twin(x).features] == ["a"]
    assert not classifier.record.features
    assert [*classifier(x).features] == ["a"]
