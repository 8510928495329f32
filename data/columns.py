"""A user's own table in CSV files: columns of numbers and of categories, and a label."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.runtime import Runtime
from data.categories import Column, columns_of
from data.dataset import Dataset
from data.delimited import Table, as_number, in_order, read_table
from data.files import existing
from data.notes import note
from data.spec import Expected
from data.tables import held_out, scaled

MOST = 100  # different texts of a column that is not named in categories, and classes


def csv(
    path: str | Path | None,
    runtime: Runtime,
    expected: Callable[[], Expected] | None = None,
    label: str | None = None,
    categories: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    test_path: str | Path | None = None,
    test_fraction: float = 0.25,
    split: int = 0,
    delimiter: str = ",",
    size: int | None = None,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """A CSV file whose first line names the columns, as vectors in [0, 1].

    A column of numbers is scaled so that the training split lies in 0..1; test values beyond that
    count as its ends, and a printed line says so. A column of texts becomes one value for each
    category: ``groups`` of :class:`data.spec.InputSpec`. Ranges and categories are taken as
    properties of the data, as 0..255 is of images: a data-free run reads training rows for them. A
    teacher's file that names its columns and classes decides instead: then the file's other columns
    are left out, and what it does not know is refused.

    Args:
        path: of all rows, or of the training split if there is ``test_path``.
        expected: by a teacher.
        label: the column of classes; None is the last one, or, if a teacher's file names its
            columns, the one besides them that has its classes.
        categories: columns that are categories though all their cells are numbers.
        leave_out: columns that are not read, such as names.
        test_path: of a second file with the same columns, in any order.
        test_fraction, split: without it, what part of each class is drawn, and the draw's number.
        delimiter: between the cells of a line.
        size: vectors have none; anything but None is refused.

    Raises:
        ValueError: for settings out of range, and for files, columns and cells that are not as
            above; the message names line and column.
    """
    table = read_table(existing(path), delimiter)
    columns, label, classes = _known(expected, table, label, categories, leave_out)
    _check_classes(table, label, len(classes))
    parted = _codes(table, label, classes), test_path, test_fraction, split, delimiter
    halves = _halves(table, *parted)
    columns = columns or _columns(*halves, label, categories, leave_out)
    for half in halves:
        _check_known(half, [*(column.name for column in columns), label])
    train, test = ((_vectors(h, columns, runtime), _codes(h, label, classes)) for h in halves)
    readers = {"train": lambda: train, "test": lambda: test}
    given = (classes, runtime, size, val_fraction, mean, std)
    more: dict[str, Any] = {"groups": _groups(columns), "columns": columns, "modality": "vector"}
    return Dataset(str(table.path), readers, *given, **more)


def _known(
    expected: Callable[[], Expected] | None,
    table: Table,
    label: str | None,
    categories: Sequence[str],
    leave_out: Sequence[str],
) -> tuple[tuple[Column, ...], str, list[str]]:
    """The columns that a teacher's file names, if any; that of the classes; and the classes, by the
    file or by the table."""
    known = expected() if expected else Expected({}, {})
    columns = columns_of(known.values.get("columns", ()))
    named = columns and known.origins.get("classes") == "its file"
    if label is None:
        label = _label(table, columns, known.classes if named else (), leave_out)
    _check_names(table, label, categories, leave_out)
    return columns, label, list(known.classes) if named else in_order(table.column(label))


def _label(
    table: Table, columns: Sequence[Column], classes: Sequence[str], leave_out: Sequence[str]
) -> str:
    """The column of classes where nobody names it: of those that a teacher does not read, the only
    one, or the only one that has nothing but its classes.

    Raises:
        ValueError: if there is none, or more than one.
    """
    if not columns:
        return table.names[-1]
    rest = set(table.names) - {column.name for column in columns} - set(leave_out)
    fit = [name for name in rest if set(table.column(name)) <= set(classes)]
    rest = set(fit) if len(fit) == 1 else rest
    if len(rest) != 1:
        found = shorten([name for name in table.names if name in rest]) or "none"
        raise ValueError(
            f"{table.path}: of the columns that the teacher does not read, one has the classes; "
            f"there is {found}: name it with data.dataset.label=..."
        )
    return rest.pop()


def _halves(
    table: Table,
    codes: NDArray[np.int64],
    test_path: str | Path | None,
    test_fraction: float,
    split: int,
    delimiter: str,
) -> tuple[Table, Table]:
    """What is for training and for testing: two files, or parts of one."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"data.dataset.test_fraction is between 0 and 1, not {test_fraction}")
    if test_path is not None:
        return table, read_table(existing(test_path), delimiter)
    test = held_out(codes, test_fraction, split)
    return table.part(~test), table.part(test)


def _columns(
    train: Table, test: Table, label: str, categories: Sequence[str], leave_out: Sequence[str]
) -> tuple[Column, ...]:
    """What the training rows say of the columns.

    Raises:
        ValueError: for a column that the test rows lack, and as :func:`_column`.
    """
    if lost := [n for n in train.names if n not in test.names and n not in leave_out]:
        raise ValueError(f"{test.path} has no column {lost[0]!r}, which {train.path} has: add it")
    names = [name for name in train.names if name not in (label, *leave_out)]
    return tuple(_column(train, name, name in categories) for name in names)


def _check_known(table: Table, names: Sequence[str]) -> None:
    """Raise a ValueError for a column of the teacher's that is not there."""
    if lost := [name for name in names if name not in table.names]:
        raise ValueError(
            f"{table.path} has no column {lost[0]!r}, which the teacher reads: add it, or choose "
            "another teacher"
        )


def _check_names(
    table: Table, label: str, categories: Sequence[str], leave_out: Sequence[str]
) -> None:
    """Raise a ValueError for columns that are not there, or of which none is left."""
    named = {"label": [label], "categories": categories, "leave_out": leave_out}
    for key, names in named.items():
        if lost := [name for name in names if name not in table.names]:
            raise ValueError(
                f"{table.path} has no column {lost[0]!r}, which data.dataset.{key} names; it has "
                f"{shorten(table.names)}"
            )
    if label in (*categories, *leave_out):
        raise ValueError(
            f"column {label!r} is the label: take it out of data.dataset.categories and leave_out, "
            "or name another label"
        )
    if not set(table.names) - {label, *leave_out}:
        raise ValueError(f"{table.path}: no column is left beside the label: leave out fewer")


def _check_classes(table: Table, label: str, count: int) -> None:
    """Raise a ValueError for labels that tell nothing apart, or everything."""
    if count < 2:
        raise ValueError(
            f"{table.path}: all rows have the same label in column {label!r}: at least two classes "
            "are needed, or another label with data.dataset.label=..."
        )
    if count > MOST and 2 * count > len(table.rows):
        raise ValueError(
            f"{table.path}: column {label!r} has {count} different values in {len(table.rows)} "
            "rows: name the column of classes with data.dataset.label=..."
        )


def _column(table: Table, name: str, category: bool) -> Column:
    """What the training rows say of a column."""
    cells = table.column(name)
    numbers = [as_number(cell) for cell in cells]
    if category or (all(n is None for n in numbers) and all(cells)):
        if not category:
            _check_texts(table, name)
        found = in_order(_present(table, name))
        if len(found) > MOST and not category:
            raise ValueError(
                f"{table.path}: column {name!r} has {len(found)} different texts: leave it out by "
                "data.dataset.leave_out=[...], or name it in data.dataset.categories=[...]; "
                "numbers have decimal points"
            )
        return Column(name, categories=tuple(found))
    values = _numbers(table, name)
    return Column(name, float(values.min()), float(values.max()))


def _check_texts(table: Table, name: str) -> None:
    """Raise a ValueError for a column of numbers that are written so that they seem to be texts."""
    cells = table.column(name)
    plain = [cell.strip().removesuffix("%").replace(",", "") for cell in cells]
    if all(as_number(cell) is not None for cell in plain):
        raise ValueError(
            f"{table.path}: the numbers in column {name!r}, such as {cells[0]}, have commas or "
            "percent signs: write a point before decimals and nothing else, or name the column in "
            "data.dataset.categories=[...]"
        )


def _vectors(table: Table, columns: Sequence[Column], runtime: Runtime) -> NDArray[np.float32]:
    """The rows of a split, [N, D]."""
    blocks, beyond = [], []
    for column in columns:
        if column.categories:
            codes = _codes(table, column.name, column.categories)
            blocks.append(np.eye(column.width, dtype=np.float32)[codes])
            continue
        low, high = column.low, column.high
        values = _numbers(table, column.name)
        if values.size and (values.min() < low or values.max() > high):
            beyond.append(column.name)
        blocks.append(scaled(values[:, None], np.array(low), np.array(high)))
    if beyond:
        note(
            runtime,
            f"data {table.path}: values beyond those of the training split count as its smallest "
            f"or largest, in {shorten(beyond)}",
        )
    return np.concatenate(blocks, axis=1)


def _groups(columns: Sequence[Column]) -> list[tuple[int, int]]:
    """Where the categories of each column are among the values of a vector."""
    ends = list(itertools.accumulate((column.width for column in columns), initial=0))
    pairs = zip(columns, itertools.pairwise(ends), strict=True)
    return [ends for column, ends in pairs if column.categories]


def _codes(table: Table, name: str, known: Sequence[str]) -> NDArray[np.int64]:
    """The cells of a column as places in what the training split has [N]."""
    places = {value: i for i, value in enumerate(known)}
    cells = _present(table, name)
    for i, cell in enumerate(cells):
        if cell not in places:
            raise ValueError(
                f"{table.where(i, name)}: {cell!r} was not in the training split, which has "
                f"{shorten(known)}: correct it, remove the row, or train with such rows (another "
                "data.dataset.split draws other rows)"
            )
    return np.array([places[cell] for cell in cells], dtype=np.int64)


def _present(table: Table, name: str) -> list[str]:
    """The cells of a column, none of which is empty."""
    cells = table.column(name)
    if "" in cells:
        raise ValueError(
            f"{table.where(cells.index(''), name)}: the value is missing: fill it in, remove the "
            "row, or leave the column out with data.dataset.leave_out=[...]"
        )
    return cells


def _numbers(table: Table, name: str) -> NDArray[np.float64]:
    """The cells of a column of numbers [N]."""
    cells = _present(table, name)
    values = [as_number(cell) for cell in cells]
    if None in values:
        row = values.index(None)
        raise ValueError(
            f"{table.where(row, name)}: {cells[row]!r} is no finite number, as others there are: "
            "correct it, or name the column in data.dataset.categories=[...]"
        )
    return np.array(values, dtype=np.float64)


def shorten(names: Sequence[str]) -> str:
    """The first few of many."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
