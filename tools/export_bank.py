"""Export a run's bank, the synthesized inputs that it still holds, as a data set.

python -m tools.export_bank RUN OUT.npz      arrays, for data=npz
python -m tools.export_bank RUN OUT          a folder of PNG files, for data=image_folder
python -m tools.export_bank RUN OUT config_path=DIR   of a run with parts of yours, from DIR
python -m tools.export_bank RUN OUT trust=[audio]     may run the module audio, if RUN names it

Training data are the bank's images with the classes that were aimed at. Test data are those that
the run was evaluated on, so that a student of the exported inputs is measured as the run's own
student was.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from core.files import PARTIAL, write_whole
from core.runtime import Runtime
from data.dataset import Dataset
from data.files import GROUPS
from engine.checkpoints import Checkpoints, files, read_checkpoint
from engine.expected import ASSUMED, expected
from engine.parts import build_dataset
from engine.trust import read_found, trusted_alone

Arrays = dict[str, NDArray[Any]]


def export_bank(run: Path, out: Path, trusted: Sequence[str] = ()) -> str:
    """Write ``out``, whole or not at all, and return what to tell the user.

    An .npz file holds ``train_images`` uint8 [N, H, W] or [N, H, W, C] (0 and 255 are the ends of
    the value range), ``train_labels`` int64 [N], ``train_rounds`` int32 [N] (the round of synthesis
    that made each image), ``test_images``, ``test_labels`` and ``classes``; other inputs are called
    so, and texts come with their ``words``. A folder holds train/CLASS/INDEX.png and
    test/CLASS/INDEX.png; "/" in a class name becomes "_".

    Args:
        trusted: modules that the run's configuration may name beside this project's.

    Raises:
        ValueError: if ``out`` exists, ``run`` is not a run directory or has no checkpoint or no
            bank, its data set cannot be opened, or a folder cannot hold its images.
    """
    if out.exists():
        raise ValueError(f"{out} exists: remove it, or give another name")
    config, bank = _read(run, trusted)
    dataset = _data(config, run)
    arrays = _arrays(bank, config, dataset)
    labels = arrays["train_labels"]
    if len(labels) and not 0 <= labels.min() <= labels.max() < dataset.num_classes:
        raise ValueError(f"the bank of {run} has labels for which {dataset.name} has no classes")
    if out.suffix == ".npz":
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        write_whole(out, file.getvalue())
        kind = GROUPS.get(dataset.kind.name, "npz")
    else:
        _write_folder(arrays, out)
        kind = f"image_folder data.dataset.channels={dataset.shape[0]}"
    many = dataset.kind.plural
    made = f"{len(bank['images'])} synthesized {many} of {dataset.num_classes} classes"
    if not dataset.has("test"):
        return f"{made}: {out}\nTo use them as data={kind}, add test {many} to measure a student on"
    return (
        f"{made}, and the test {many} of {_place(config, dataset)}: {out}\n"
        f"To use them: data={kind} data.path={out} data.size=null"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.export_bank",
        description="Write the inputs that a run synthesized, and still holds, as a data set.",
    )
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("out", type=Path, help="a file NAME.npz, or else a folder of PNG files")
    parser.add_argument(
        "own",
        nargs="*",
        help="config_path=DIR, or trust=[MODULE,...]: code of yours that RUN may name",
    )
    given = parser.parse_args(arguments)
    try:
        trusted = trusted_alone(given.own)
        print(export_bank(given.run.expanduser(), given.out.expanduser(), trusted))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _data(config: dict[str, Any], run: Path) -> Dataset:
    try:
        return build_dataset(config, Runtime("cpu"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run / 'config.yaml'} names no data set ({error})") from error


def _place(config: dict[str, Any], dataset: Dataset) -> str:
    """The data set's name, and the file that the run's configuration read it from."""
    path = config["data"].get("path")
    return f"{dataset.name} in {path}" if path else dataset.name


def _read(run: Path, trusted: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The run's configuration, and the banks of all ranks in its last checkpoint as one."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is not a run directory: it has no config.yaml")
    config = read_found(run / "config.yaml", trusted)
    saved = Checkpoints(run / "checkpoints", Runtime("cpu")).whole()
    if not saved:
        raise ValueError(
            f"{run} has no checkpoint to read the bank from: run it with checkpoints=1 or more, "
            "and overwrite=true if it is finished"
        )
    sources = [read_checkpoint(file)["source"] for file in files(saved[-1])]
    banks = [bank for source in sources if (bank := _bank(source))]
    if len(banks) < len(sources):
        raise ValueError(
            f"{run} has no bank: method={config['choices'].get('method')} keeps no inputs. "
            "Take a run of a method that does, such as deep_inversion"
        )
    names = "images", "labels", "rounds"
    try:
        bank = {name: torch.cat([bank[name] for bank in banks]) for name in names}
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the bank in {saved[-1]} is damaged: {error}") from error
    return config, bank


def _bank(source: Any) -> dict[str, Tensor] | None:
    """What the first stream of a source that stores inputs, a bank or an experience, holds."""
    streams = source.get("streams", {}).values()
    return next((stream["bank"] for stream in streams if "bank" in stream), None)


def _stored(images: Tensor, config: dict[str, Any], dataset: Dataset) -> Tensor:
    """A bank's inputs, encoded if it keeps them as they are, in the range that the run had.

    It is the teacher's; but it is the data's where nothing says that one, as of a teacher that was
    trained for the run, and where the teacher sees the data through a transform.
    """
    if images.dtype == dataset.kind.storage:
        return images
    known = expected(config["teacher"])
    of_data = known.origins["range"] == ASSUMED or config["teacher"].get("transform") is not None
    low, high = dataset.range if of_data else known.values["range"]
    return dataset.kind.encode(images, (low, high))


def _arrays(bank: dict[str, Tensor], config: dict[str, Any], dataset: Dataset) -> Arrays:
    """The arrays that exist: no test split without test data, and no labels without labels."""
    kind = dataset.kind
    arrays = {
        f"train_{kind.plural}": kind.array(_stored(bank["images"], config, dataset)),
        "train_labels": bank["labels"].numpy(),
        "train_rounds": bank["rounds"].numpy(),
        "classes": np.array(dataset.classes),
    }
    if dataset.words:
        arrays["words"] = np.array(dataset.words)
    if dataset.groups:
        arrays["groups"] = np.array(dataset.groups)
    if dataset.rate is not None:
        arrays["rate"] = np.array(dataset.rate)
    if dataset.has("test"):
        test = dataset.open("test")
        stored, labels = test.stored(slice(0, len(test)))
        arrays[f"test_{kind.plural}"] = kind.array(stored)
        if labels is not None:
            arrays["test_labels"] = labels.numpy()
    return arrays


def _write_folder(arrays: Arrays, out: Path) -> None:
    """Write all files under another name, and rename the folder."""
    if "train_images" not in arrays:
        raise ValueError("a folder holds images: export to a name with .npz")
    if arrays["train_images"].ndim == 4 and arrays["train_images"].shape[-1] != 3:
        raise ValueError("a folder holds images of 1 or 3 channels: export to a name with .npz")
    names = [str(name).replace("/", "_") for name in arrays["classes"]]
    if len(set(names)) < len(names) or any(name[:1] in ("", ".") for name in names):
        raise ValueError("not every class name can name a folder: export to a name with .npz")
    if "test_labels" not in arrays:
        raise ValueError("there are no labelled test images: export to a name with .npz")
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
