"""Data sets of texts: the queries of CLINC150, and a user's own CSV file."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.runtime import Runtime
from data.dataset import Dataset
from data.spec import Expected
from data.words import known_words, numbered, split_words

Arrays = tuple[NDArray[np.int16], NDArray[np.int64]]

CLINC = "the data of Larson et al. (EMNLP 2019) as one clinc150.json.gz"
SPLIT_SEED = 0  # of a file that is cut into training and test rows


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
    test: str | Path | None = None,
    test_fraction: float = 0.2,
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
        test: another such file to test on; None takes ``test_fraction`` of every class of
            ``path``, always the same rows.
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
    if path is None:
        raise ValueError("this data set needs a path: set data.path=FILE.csv")
    splits = {"train": _csv(path, text, label, delimiter)}
    classes = _in_order(set(splits["train"].names))
    if len(classes) < 2:
        raise ValueError(f"{path} has one class, {classes[0]!r}: at least two are needed")
    if test is None:
        splits = _parted(splits["train"], test_fraction)
    else:
        splits["test"] = _csv(test, text, label, delimiter)
    _check_labels(splits, path, test or path)
    given: dict[str, Any] = {"size": size, "val_fraction": val_fraction}
    return _dataset(str(path), splits, classes, runtime, vocabulary, length, expected, given)


def _check_labels(splits: dict[str, Texts], path: str | Path, tested: str | Path) -> None:
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


def _csv(path: str | Path, text: str, label: str, delimiter: str) -> Texts:
    """The two columns of a file, checked row by row."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    try:
        lines = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not UTF-8 in line {line}: save it as UTF-8") from error
    if "\0" in lines:
        raise ValueError(f"{path} is not a CSV file: it has zero bytes")
    try:
        rows = list(csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter, strict=True))
    except (csv.Error, TypeError) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    columns = [name.strip() for name in rows[0]] if rows else []
    for key, name in (("text", text), ("label", label)):
        if columns.count(name) != 1:
            raise ValueError(
                f"{path} has {columns.count(name) or 'no'} column(s) {name!r}, but: "
                f"{', '.join(columns)[:200]}. Name yours with data.dataset.{key}=NAME, and what is "
                "between columns with data.dataset.delimiter"
            )
    return _rows(path, rows, columns.index(text), columns.index(label))


def _rows(path: str | Path, rows: list[list[str]], text: int, label: int) -> Texts:
    found = Texts([], [])
    for i, row in enumerate(rows[1:], 1):
        if not row:  # an empty line
            continue
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{path}: row {i} has {len(row)} columns, and the first line {len(rows[0])}: put "
                "quotes around texts that have what is between columns"
            )
        if not split_words(row[text]):
            raise ValueError(f"{path}: the text of row {i} has no words ({row[text]!r:.60})")
        if not row[label].strip():
            raise ValueError(f"{path}: row {i} has no label")
        found.texts.append(row[text])
        found.names.append(row[label].strip())
    if not found.texts:
        raise ValueError(f"{path} has no rows below its first line")
    return found


def _parted(rows: Texts, fraction: float) -> dict[str, Texts]:
    """Training and test rows; a part of every class for testing, but not its only one."""
    names = np.array(rows.names)
    generator = np.random.default_rng(SPLIT_SEED)
    test = np.zeros(len(names), dtype=bool)
    for name in np.unique(names):
        of_class = generator.permutation(np.flatnonzero(names == name))
        test[of_class[: min(round(fraction * len(of_class)), len(of_class) - 1)]] = True
    if not test.any():
        raise ValueError(
            f"{fraction:.0%} of each class are no rows: set data.dataset.test=FILE.csv"
        )
    both = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    return {
        which: Texts([rows.texts[i] for i in of], [rows.names[i] for i in of])
        for which, of in both.items()
    }


def _in_order(names: set[str]) -> list[str]:
    """By number where all are whole numbers, and otherwise by the alphabet."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)
