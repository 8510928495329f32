"""Data sets of texts: the queries of CLINC150, and a user's own CSV file."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.runtime import Runtime
from data.dataset import Dataset
from data.delimited import in_order, read_table
from data.files import existing
from data.spec import Expected
from data.tables import held_out
from data.words import known_words, numbered, split_words

Arrays = tuple[NDArray[np.int16], NDArray[np.int64]]

CLINC = "the data of Larson et al. (EMNLP 2019) as one clinc150.json.gz"


@dataclass
class Texts:
    """The texts of a split and the names of their classes."""

    texts: list[str]
    names: list[str]


def clinc150(
    path: str | Path | None,
    runtime: Runtime,
    task: Literal["domain", "intent"] = "domain",
    vocabulary: int = 1200,
    length: int = 16,
    size: int | None = None,
    val_fraction: float = 0.0,
    expected: Callable[[], Expected] | None = None,
) -> Dataset:
    """Queries to an assistant (Larson et al., EMNLP 2019): 15,000 for training, 4,500 for testing.

    Args:
        path: JSON, which may be compressed by gzip: ``{"train": [[TEXT, INTENT, DOMAIN], ...],
            "val": ..., "test": ...}``, and the names ``domains`` and ``intents`` in label order.
        task: what is told apart: the 10 domains, or the 150 intents.
        vocabulary: how many of the commonest training words are known.
        length: places of a text; 98 % of the queries have at most 16 words.
        size: places to which texts are padded.
        expected: by a teacher, whose file holds its vocabulary.

    Raises:
        ValueError: for settings out of range, and a path that is not as above.
    """
    _check_length(length)
    if path is None or not Path(path).is_file():
        lost = "" if path is None else f"; {path} is no file"
        raise ValueError(f"queries need data.path=..., {CLINC}{lost}")
    found = _clinc(Path(path))
    column = ("intent", "domain").index(task) + 1
    splits = {
        which: Texts([row[0] for row in found[which]], [row[column] for row in found[which]])
        for which in ("train", "val", "test")
    }
    given: dict[str, Any] = {"size": size, "val_fraction": val_fraction}
    return _dataset(
        "clinc150", splits, found[f"{task}s"], runtime, vocabulary, length, expected, given
    )


def csv_text(
    path: str | Path | None,
    runtime: Runtime,
    text: str = "text",
    label: str = "label",
    test_path: str | Path | None = None,
    test_fraction: float = 0.25,
    split: int = 0,
    vocabulary: int = 1200,
    length: int = 16,
    delimiter: str = ",",
    size: int | None = None,
    val_fraction: float = 0.0,
    expected: Callable[[], Expected] | None = None,
) -> Dataset:
    """A CSV file with a column of texts and one of labels, which may be any words or numbers.

    The first line names the columns. Classes are the labels in order.

    Args:
        path: of the file, in UTF-8.
        text: the name of the column of texts.
        label: that of the labels.
        test_path: another such file to test on.
        test_fraction, split: without it, what part of each class is drawn, and the draw's number.
        vocabulary: how many of the commonest training words are known.
        length: places of a text; of longer ones the beginning is kept.
        delimiter: what is between two columns.
        size: places to which texts are padded.
        expected: by a teacher, whose file holds its vocabulary.

    Raises:
        ValueError: for settings out of range, a file that is not such a file, a text without words,
            and a test label that no training row has.
    """
    _check_length(length)
    if not 0 < test_fraction < 1:
        raise ValueError(f"data.dataset.test_fraction must be in (0, 1), but is {test_fraction}")
    splits = {"train": _csv(existing(path), text, label, delimiter)}
    classes = in_order(splits["train"].names)
    known = expected().classes if expected else ()
    if set(classes) < set(known):  # a new file need not have all of them
        classes = list(known)
    if len(classes) < 2:
        raise ValueError(f"{path} has one class, {classes[0]!r}: at least two are needed")
    if test_path is None:
        splits = _parted(splits["train"], test_fraction, split)
    else:
        splits["test"] = _csv(existing(test_path), text, label, delimiter)
    _check_labels(splits, path, test_path or path)
    given: dict[str, Any] = {"size": size, "val_fraction": val_fraction}
    return _dataset(str(path), splits, classes, runtime, vocabulary, length, expected, given)


def _check_labels(splits: dict[str, Texts], path: Any, tested: Any) -> None:
    if strangers := sorted(set(splits["test"].names) - set(splits["train"].names)):
        raise ValueError(
            f"no training row has the label {', '.join(map(repr, strangers[:5]))}, which "
            f"{tested} has for testing: add such rows to {path}, or leave these out"
        )


def _dataset(
    name: str,
    splits: dict[str, Texts],
    classes: Sequence[str],
    runtime: Runtime,
    vocabulary: int,
    length: int,
    expected: Callable[[], Expected] | None,
    given: dict[str, Any],
) -> Dataset:
    words = known_words(name, vocabulary, expected, lambda: splits["train"].texts)
    numbers = {label: i for i, label in enumerate(classes)}

    def arrays(which: str) -> Arrays:
        part = splits[which]
        rows = numbered(part.texts, words, length, f"{name}: {which}", runtime)
        return rows, np.array([numbers[label] for label in part.names])

    readers = {which: functools.partial(arrays, which) for which in splits}
    return Dataset(name, readers, classes, runtime, modality="text", words=words, **given)


def _check_length(length: int) -> None:
    if length < 1:
        raise ValueError(f"data.dataset.length is a number of words, at least 1, but is {length}")


def _clinc(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        found: dict[str, Any] = json.loads(
            gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        )
        rows = [row for which in ("train", "val", "test") for row in found[which]]
        fits = all(len(row) == 3 and all(isinstance(x, str) for x in row) for row in rows)
        known = set(found["intents"]), set(found["domains"])
        if not fits or any(row[1] not in known[0] or row[2] not in known[1] for row in rows):
            raise ValueError("a row is not [text, intent, domain] of the intents and domains named")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path} is not {CLINC}: {reason:.200}") from error
    return found


def _csv(path: Path, text: str, label: str, delimiter: str) -> Texts:
    """The two columns of a file, checked row by row."""
    table = read_table(path, delimiter)
    for key, name in (("text", text), ("label", label)):
        if name not in table.names:
            raise ValueError(
                f"{path} has no column {name!r}, but: {', '.join(table.names)[:200]}. Name yours "
                f"with data.dataset.{key}=NAME, and what is between columns with "
                "data.dataset.delimiter"
            )
    found = Texts(table.column(text), table.column(label))
    for i, (words, name) in enumerate(zip(found.texts, found.names, strict=True)):
        if not split_words(words):
            raise ValueError(
                f"{table.where(i, text)}, has no words ({words!r:.60}): remove the line"
            )
        if not name:
            raise ValueError(f"{table.where(i, label)}, is empty: every text needs a label")
    return found


def _parted(rows: Texts, fraction: float, split: int) -> dict[str, Texts]:
    """Training and test rows; a part of every class for testing."""
    test = held_out(np.array(rows.names), fraction, split)
    if not test.any():
        raise ValueError(
            f"{fraction:.0%} of each class are no rows: set data.dataset.test_path=FILE.csv"
        )
    both = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    return {
        which: Texts([rows.texts[i] for i in of], [rows.names[i] for i in of])
        for which, of in both.items()
    }
