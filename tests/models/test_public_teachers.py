"""Networks that others trained load as they are and classify."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.spec import InputSpec
from models.checkpoint import load_weights
from models.pretrained import freeze, load_classifier
from models.resnet_cifar import resnet_cifar


def cifar_test_images(shared: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images [count, 3, 32, 32] in [0, 1] out of 16×16 mosaics, and their labels."""
    folder = shared / "data" / "cifar10"
    mosaics = [np.asarray(Image.open(folder / f"test_00{i}.webp").convert("RGB")) for i in (0, 1)]
    tiles = [m.reshape(16, 32, 16, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for m in mosaics]
    images = torch.from_numpy(np.concatenate(tiles)[:count]).permute(0, 3, 1, 2) / 255
    return images, torch.from_numpy(np.load(folder / "test_labels.npy")[:count]).long()


@pytest.mark.parametrize("depth", [20, 56])
def test_public_teachers_classify(shared: Path, depth: int) -> None:
    images, labels = cifar_test_images(shared, 512 if depth == 20 else 256)
    path = shared / "teachers" / f"cifar10_resnet{depth}.safetensors"
    data = InputSpec((3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    classes = [str(i) for i in range(10)]
    teacher = freeze(load_classifier(resnet_cifar(3, 10, depth), path, data, mean, std, classes))
    state = load_weights(path)[0]
    resnet_cifar(3, 10, depth).load_state_dict(state, strict=True)
    with torch.no_grad():
        accuracy = (teacher(images).logits.argmax(1) == labels).float().mean().item()
    assert accuracy >= 0.88
