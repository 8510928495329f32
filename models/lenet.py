"""LeNet-5 (LeCun et al., 1998) with rectifiers, as DAFL uses it (Chen et al., ICCV 2019)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class LeNet5(nn.Module):
    """Inputs [B, in_channels, 32, 32] to logits [B, num_classes].

    The tap ``pooled`` is the output of the last convolution, [B, 120] at width 1: the features
    of DAFL's activation loss. Weights are initialised as PyTorch does, as in DAFL's code.

    Args:
        width: multiplies the number of units of every hidden layer; DAFL's student has 0.5.
        batchnorm: adds a BatchNorm layer after each convolution.
        input_size: height and width of the inputs.

    Raises:
        ValueError: for inputs that are not 32×32.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        batchnorm: bool = False,
        input_size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        if tuple(input_size) != (32, 32):
            height, breadth = input_size
            raise ValueError(
                f"LeNet-5 takes 32x32 inputs, but the data has {height}x{breadth}: "
                "pass data.size=32 or choose another model"
            )
        c1, c2, c3, hidden = (max(1, int(n * width)) for n in (6, 16, 120, 84))
        self.stage1 = nn.Sequential(*_convolution(in_channels, c1, batchnorm), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(*_convolution(c1, c2, batchnorm), nn.MaxPool2d(2))
        self.stage3 = nn.Sequential(*_convolution(c2, c3, batchnorm))
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(c3, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.taps = {f"stage{i}": f"stage{i}" for i in (1, 2, 3)}
        self.taps |= {"pooled": "flatten", "logits": "fc2"}

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(self.stage3(self.stage2(self.stage1(x))))
        return self.fc2(F.relu(self.fc1(x)))


def _convolution(in_channels: int, out_channels: int, batchnorm: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 5, bias=not batchnorm)
    return [convolution, *([nn.BatchNorm2d(out_channels)] if batchnorm else []), nn.ReLU()]
