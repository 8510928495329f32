"""Write the bank of a run, the inputs that it synthesized and still holds, as a data set.

python -m generators.export_bank RUN OUT.npz      arrays, for data=npz
python -m generators.export_bank RUN OUT          a folder of PNG files, for data=image_folder

Training data are the bank's images with the classes that were aimed at. Test data are those that
the run was evaluated on, because a data set needs some, and a student of the exported inputs is to
be measured as the run's own was.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from data.dataset import Dataset
from engine.checkpoints import Checkpoints, files, read
from engine.files import PARTIAL, write_whole
from engine.parts import build_dataset, plain
from engine.runtime import Runtime

Arrays = dict[str, NDArray[Any]]


def export(run: Path, out: Path) -> str:
    """Write ``out``, whole or not at all, and return what to tell the user.

    An .npz file holds ``train_images`` uint8 [N, H, W] or [N, H, W, C] (0 and 255 are the ends of
    the value range), ``train_labels`` int64 [N], ``train_rounds`` int32 [N] (the round of synthesis
    that made each image), ``test_images``, ``test_labels`` and ``classes``. A folder holds
    train/CLASS/INDEX.png and test/CLASS/INDEX.png; "/" in a class name becomes "_".

    Raises:
        ValueError: where ``out`` exists, ``run`` is no run directory, has no checkpoint or no
            bank, its data set cannot be opened, or a folder cannot hold its images.
    """
    if out.exists():
        raise ValueError(f"{out} exists: remove it, or give another name")
    config, bank = _read(run)
    dataset = build_dataset(config, Runtime("cpu"))
    arrays = _arrays(bank, dataset)
    if out.suffix == ".npz":
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        write_whole(out, file.getvalue())
        kind = "npz"
    else:
        _write_folder(arrays, out)
        kind = f"image_folder data.dataset.channels={dataset.shape[0]}"
    return (
        f"{len(bank['images'])} synthesized images of {dataset.num_classes} classes, and the test "
        f"images of {dataset.name}: {out}\nTo use them: data={kind} data.path={out} data.size=null"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m generators.export_bank",
        description="Write the inputs that a run synthesized, and still holds, as a data set.",
    )
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("out", type=Path, help="a file NAME.npz, or else a folder of PNG files")
    given = parser.parse_args(arguments)
    try:
        print(export(given.run, given.out))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _read(run: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The run's configuration, and the banks of all ranks in its last checkpoint as one."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run directory: it has no config.yaml")
    loaded = OmegaConf.load(run / "config.yaml")
    saved = Checkpoints(run / "checkpoints", Runtime("cpu")).whole()
    if not saved:
        raise ValueError(
            f"{run} has no checkpoint to read the bank from: run it with checkpoints=1 or more, "
            "and overwrite=true if it is finished"
        )
    sources = [read(file)["source"] for file in files(saved[-1])]
    sources = [source.get("experience") or source for source in sources]  # MAZE's bank is in there
    if "bank" not in sources[0]:
        raise ValueError(
            f"{run} has no bank: method={loaded.choices.method} keeps no inputs. "
            "Take a run of a method that does, such as deep_inversion"
        )
    names = "images", "labels", "rounds"
    bank = {name: torch.cat([source["bank"][name] for source in sources]) for name in names}
    return plain(loaded), bank  # type: ignore[arg-type]


def _arrays(bank: dict[str, Tensor], dataset: Dataset) -> Arrays:
    test = dataset.open("test")
    images, labels = test.batch(slice(0, len(test)))
    return {
        "train_images": _pixels(bank["images"]),
        "train_labels": bank["labels"].numpy(),
        "train_rounds": bank["rounds"].numpy(),
        "test_images": _pixels((images * 255).round().to(torch.uint8)),
        "test_labels": labels.numpy(),
        "classes": np.array(dataset.classes),
    }


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """[N, C, H, W] as [N, H, W, C], or as [N, H, W] where C is 1."""
    return (
        images.movedim(1, -1).contiguous().numpy() if images.shape[1] > 1 else images[:, 0].numpy()
    )


def _write_folder(arrays: Arrays, out: Path) -> None:
    """Write all files under another name, and rename the folder."""
    if arrays["train_images"].ndim == 4 and arrays["train_images"].shape[-1] != 3:
        raise ValueError("a folder holds images of 1 or 3 channels: export to a name with .npz")
    names = [str(name).replace("/", "_") for name in arrays["classes"]]
    if len(set(names)) < len(names) or any(name[:1] in ("", ".") for name in names):
        raise ValueError("not every class name can name a folder: export to a name with .npz")
    for which in ("train", "test"):
        if absent := set(range(len(names))) - set(arrays[f"{which}_labels"].tolist()):
            raise ValueError(
                f"there is no {which} image of class {names[min(absent)]}, and folders need one of "
                "every class: export to a name with .npz"
            )
    partial = out.with_name(out.name + PARTIAL)
    try:
        for which in ("train", "test"):
            folders = [partial / which / name for name in names]
            for folder in folders:
                folder.mkdir(parents=True)
            pairs = zip(arrays[f"{which}_images"], arrays[f"{which}_labels"], strict=True)
            for i, (pixels, label) in enumerate(pairs):
                Image.fromarray(pixels).save(folders[label] / f"{i:06d}.png")
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
