"""A network for spectrograms: images whose rows are bands and whose columns are frames."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.initialization import initialize


class TDNN(nn.Module):
    """Inputs [B, in_channels, bands, frames] to logits [B, num_classes].

    A time-delay neural network (Waibel et al., IEEE Trans. ASSP 37(3), 1989): every layer is a
    convolution over time alone, the first one of all bands at once. So what it knows of one band
    it does not apply to another, as convolutions over both axes do. The mean over time comes last.
    Each convolution has BatchNorm and a rectifier, and the first stage pools two frames; the paper
    has sigmoids, and sums squares over time.

    Args:
        in_channels: C.
        num_classes: of the classifier.
        input_size: bands and frames.
        widths: channels of each layer.
        context: frames that a layer sees; odd.

    Raises:
        ValueError: for inputs that are no images, without a layer, and for an even context.
    """

    for_spectrograms = True  # so that it is not proposed for photographs, which it would take

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        input_size: Sequence[int],
        widths: Sequence[int] = (128, 128, 256),
        context: int = 5,
    ) -> None:
        super().__init__()
        if len(input_size) != 2:
            raise ValueError(
                "TDNN takes spectrograms, images of bands and frames, but the inputs have "
                f"{len(input_size)} axes beside their channels: choose another network, or show it "
                "signals by transform=log_mel"
            )
        if not widths or context % 2 == 0:
            raise ValueError(
                "TDNN needs widths of at least one layer and an odd context, but has "
                f"widths={list(widths)}, context={context}"
            )
        self.stages = nn.ModuleList()
        bands, before = input_size[0], in_channels
        for i, width in enumerate(widths):
            kernel = (1 if i else bands, context)
            layer = nn.Conv2d(before, width, kernel, padding=(0, context // 2), bias=False)
            pool = [] if i or input_size[1] < 2 else [nn.MaxPool2d((1, 2))]
            self.stages.append(nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU(), *pool))
            before = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(before, num_classes)
        self.taps = {f"stage{i + 1}": f"stages.{i}" for i in range(len(widths))}
        self.taps |= {"pooled": "flatten", "logits": "linear"}
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.linear(self.flatten(self.pool(x)))  # type: ignore[no-any-return]
