"""Every data set's configuration has the same keys, and its nodes fit what they build."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from core.check import check_node

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "data").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configuration(path: Path) -> None:
    config = OmegaConf.load(path)
    OmegaConf.update(config, "defaults", [])
    data = OmegaConf.to_container(OmegaConf.create({"data": config}), resolve=True)["data"]
    assert set(data) == {
        "defaults", "root", "path", "size", "val_fraction", "dataset", "training", "steps"
    }  # fmt: skip
    assert set(data["training"]) == {"steps", "batch_size", "lr", "weight_decay", "augment"}
    assert not check_node(data["dataset"], "dataset")
    assert not check_node(data["training"], "training")
    assert all(0 < value < 1 for value in (data["dataset"].get("std") or []))


def test_there_are_nine() -> None:
    assert {path.stem for path in CONFIGS} >= {
        "digits", "mnist", "fashion_mnist", "kmnist", "svhn", "cifar10", "cifar100", "npz",
        "image_folder",
    }  # fmt: skip
