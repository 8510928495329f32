"""Files of columns (CSV), read with the standard library: a header, then rows of as many cells."""

from __future__ import annotations

import csv
import io
import itertools
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass
class Table:
    """The cells of a file, without spaces around them.

    Args:
        path: of the file.
        names: of the columns, each once.
        rows: a list of cells each.
        lines: on which line of the file each row ends, for messages.
    """

    path: Path
    names: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """The cells of one column."""
        place = self.names.index(name)
        return [row[place] for row in self.rows]

    def part(self, chosen: NDArray[np.bool_]) -> Table:
        """Some of the rows."""
        rows = list(itertools.compress(self.rows, chosen))
        return Table(self.path, self.names, rows, list(itertools.compress(self.lines, chosen)))

    def where(self, row: int, name: str) -> str:
        """A cell's place, which begins a message."""
        return f"{self.path}, line {self.lines[row]}, column {name!r}"


def read_table(path: Path, delimiter: str = ",") -> Table:
    """A file whose first line names the columns; empty lines are left out.

    Raises:
        ValueError: for a file that cannot be read, is not UTF-8 text or has no rows, for names that
            are empty or there twice, and for a row with more or fewer cells.
    """
    delimiter = "\t" if delimiter == "\\t" else delimiter  # as a shell passes it
    if len(delimiter) != 1:
        raise ValueError(f"data.dataset.delimiter is one character, not {delimiter!r}")
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        found = [(reader.line_num, row) for row in _stripped(reader)]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}, is not CSV: {error}") from error
    names = found[0][1] if found else []
    _check_names(path, names, delimiter)
    table = Table(path, names, [row for _, row in found[1:]], [line for line, _ in found[1:]])
    _check_rows(table)
    return table


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        text = unicodedata.normalize("NFC", content.decode("utf-8-sig"))  # as classes are
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if "\0" in text:
        raise ValueError(f"{path} is not text: it has zero bytes")
    return text


def _stripped(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    for row in reader:
        if row:
            yield [cell.strip() for cell in row]


def _check_names(path: Path, names: list[str], delimiter: str) -> None:
    if not names:
        raise ValueError(f"{path} is empty: its first line should name the columns")
    if len(names) == 1:
        other = next((d for d in ";\t|," if d in names[0] and d != delimiter), None)
        hint = f"set data.dataset.delimiter={other!r}" if other else "at least two are needed"
        raise ValueError(f"{path} has one column only, {names[0]!r:.80}: {hint}")
    if "" in names:
        raise ValueError(f"{path}: column {names.index('') + 1} has no name: name it in line 1")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} has more than one column {twice[0]!r}: rename or remove one")


def _check_rows(table: Table) -> None:
    if not table.rows:
        raise ValueError(f"{table.path} has a header and no rows below it: add rows")
    width = len(table.names)
    for i, row in enumerate(table.rows):
        if len(row) != width:
            raise ValueError(
                f"{table.path}, line {table.lines[i]}: {len(row)} cells, where the header has "
                f"{width} columns: repair the line (text with a separator in it needs quotes)"
            )


def as_number(cell: str) -> float | None:
    try:
        value = float(cell.replace("_", "x"))  # Python would read 18_25 as 1825
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def in_order(cells: Iterable[str]) -> list[str]:
    """Each once, in the order of numbers if all are, and else of texts."""
    found = sorted(set(cells))
    if all(as_number(cell) is not None for cell in found):
        found.sort(key=float)
    return found
