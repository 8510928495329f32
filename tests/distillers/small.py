"""A small pair of networks made by hand, and a distiller around it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.base import TransferLoss
from distillers.distiller import Distiller
from distillers.edges import student_taps
from distillers.step import Edge, View
from models.classifier import Classifier, Outputs

SPEC = InputSpec((1, 8, 8), mean=(0.5,), std=(0.25,))


class Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.stage2 = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * width, 4))
        self.taps = {"stage1": "stage1", "stage2": "stage2"}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(x)))


class Hint(TransferLoss):
    """A loss with a parameter of its own, as in FitNets."""

    def __init__(self) -> None:
        super().__init__(("stage2",))
        self.projection = nn.Conv2d(4, 8, 1)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        projected = self.projection(student.features["stage2"])
        return (projected - teacher.features["stage2"]).pow(2).mean()


def objective_of(**losses: TransferLoss) -> Objective:
    return Objective({name: Weighted(loss) for name, loss in losses.items()})


def make_teacher(statistics: bool = False) -> Classifier:
    torch.manual_seed(1)
    return Classifier(Network(8), SPEC, statistics=statistics)


def make(
    objective: Objective,
    teacher: Classifier | None = None,
    runtime: Runtime | None = None,
    edges: Mapping[str, Edge] | None = None,
    **views: View,
) -> Distiller:
    torch.manual_seed(0)
    student = Classifier(Network(4), SPEC, taps=student_taps(objective))
    runtime = runtime or Runtime(device="cpu")
    return Distiller(student, objective, teacher, runtime, edges=edges, views=views)


def make_batch(label: Tensor | None = None) -> Batch:
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(x, label)


def train(distiller: Distiller, steps: int, batch: Batch | None = None) -> list[float]:
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05)
    values = []
    for _ in range(steps):
        losses = distiller(batch or make_batch())
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        values.append(losses.total.item())
    return values
