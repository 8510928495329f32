"""A user's own CSV: numbers are scaled, categories become blocks, and mistakes name their place."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.runtime import Runtime
from data.columns import csv
from data.delimited import as_number
from data.spec import Expected, InputSpec
from data.tables import TABLES, held_out, table

RUNTIME = Runtime("cpu")
HEADER = "age,colour,grade,bought\n"
ROWS = ["20,red,10,yes", "40,blue,9,no", "30,green,10,yes", "30,red,9,no"]
TRAIN = HEADER + "\n".join(ROWS) + "\n"
TEST = HEADER + "50,green,9,no\n10,blue,10,yes\n25,red,9,no\n"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def own(folder: Path, train: str | bytes = TRAIN, test: str | bytes = TEST, **more: Any) -> Any:
    files = write(folder / "own.csv", train), write(folder / "new.csv", test)
    return csv(files[0], RUNTIME, test_path=files[1], **more)


def rows(data: Any, which: str) -> list[list[float]]:
    return data.open(which).stored(slice(0, 99))[0].tolist()  # type: ignore[no-any-return]


def test_columns_become_values_in_order(tmp_path: Path) -> None:
    data = own(tmp_path, categories=["grade"])
    assert data.classes == ("no", "yes")
    assert data.groups == data.spec.groups == ((1, 4), (4, 6))
    # age from 20 to 40; blue, green, red; 9, 10
    assert rows(data, "train") == [
        [0.0, 0, 0, 1, 0, 1],
        [1.0, 1, 0, 0, 1, 0],
        [0.5, 0, 1, 0, 0, 1],
        [0.5, 0, 0, 1, 1, 0],
    ]
    assert data.open("train").labels.tolist() == [1, 0, 1, 0]


def test_another_file_is_read_as_the_teacher_knows_it(tmp_path: Path) -> None:
    """Numbers on its scale, categories in its order; what it does not know is refused."""
    first = own(tmp_path)
    said = json.loads(json.dumps(first.spec.to_dict()))  # as a file keeps it
    assert InputSpec(**said) == first.spec
    teacher = functools.partial(
        Expected, said | {"classes": first.classes}, {"classes": "its file"}
    )
    text = "extra,bought,colour,age,grade\n7,yes,red,30,10\n7,yes,blue,20,9\n"

    def read(text: str) -> Any:
        return own(tmp_path, text, text, label="bought", expected=teacher)

    data = read(text)
    assert (data.columns, data.classes, data.groups) == (first.columns, ("no", "yes"), first.groups)
    assert rows(data, "train") == [[0.5, 0, 0, 1, 1.0], [0.0, 1, 0, 0, 0.0]]
    data.check(first.spec, 2)
    with pytest.raises(ValueError, match=r"'pink' was not in the training split, which has blue"):
        read(text.replace("red", "pink"))
    with pytest.raises(ValueError, match=r"has no column 'age', which the teacher reads: add it"):
        read(text.replace("age", "years"))
    with pytest.raises(ValueError, match="'perhaps' was not in the training split, which has no"):
        read(text.replace("yes,red", "perhaps,red"))
    other = own(tmp_path, TRAIN.replace("40,blue", "80,blue"))
    with pytest.raises(ValueError, match=r"has 'age', from 20 to 40 where .* 'age', from 20 to 80"):
        data.check(other.spec, 2)


def test_the_label_of_another_file_is_the_column_that_its_teacher_does_not_read(
    tmp_path: Path,
) -> None:
    first = own(tmp_path)
    said = first.spec.to_dict() | {"classes": first.classes}
    teacher = functools.partial(Expected, said, {"classes": "its file"})
    text = "bought,colour,age,grade\nyes,red,30,10\nno,blue,20,9\n"
    data = own(tmp_path, text, text, expected=teacher)
    assert data.open("train").labels.tolist() == [1, 0]
    more = "id," + text.replace("\n", "\n7,", 2)
    assert own(tmp_path, more, more, expected=teacher, leave_out=["id"]).shape == first.shape
    twice = "again," + text.replace("\n", "\nno,", 2)
    with pytest.raises(ValueError, match=r"there is again, bought: name it with data\.dataset\.l"):
        own(tmp_path, twice, twice, expected=teacher)
    last = "id,colour,age,grade,bought\n1,red,30,10,yes\n2,blue,20,9,no\n"
    assert own(tmp_path, last, last, expected=teacher).open("train").labels.tolist() == [1, 0]
    other = last.replace("bought\n", "bought,note\n").replace("yes\n", "yes,late\n")
    other = other.replace("no\n", "no,early\n")
    assert own(tmp_path, other, other, expected=teacher).open("train").labels.tolist() == [1, 0]
    bare = text.replace("bought,", "").replace("yes,", "").replace("no,", "")
    with pytest.raises(ValueError, match="there is none: name it"):
        own(tmp_path, bare, bare, expected=teacher)


@pytest.mark.parametrize(("cell", "number"), [("18_25", None), ("1e3", 1000.0), (" 7 ", 7.0)])
def test_what_is_a_number(cell: str, number: float | None) -> None:
    assert as_number(cell) == number


def test_tabs_are_given_as_a_shell_passes_them(tmp_path: Path) -> None:
    data = own(tmp_path, TRAIN.replace(",", "\t"), TEST.replace(",", "\t"), delimiter="\\t")
    assert data.classes == ("no", "yes")


def test_letters_may_be_composed_or_not(tmp_path: Path) -> None:
    """In the file that a teacher was trained on, and in one that it reads."""
    first = own(tmp_path, TRAIN.replace("yes", "caf\u00e9"), TEST.replace("yes", "caf\u00e9"))
    values = first.spec.to_dict() | {"classes": first.classes}
    teacher = functools.partial(Expected, values, {"classes": "its file"})
    texts = (text.replace("yes", "cafe\u0301") for text in (TRAIN, TEST))
    assert own(tmp_path, *texts, expected=teacher).classes == ("caf\u00e9", "no")


@pytest.mark.parametrize("columns", [[["age", 0, 1, []]], [["a"]], 3, [["a", 0, 1, ["x", "y"]]]])
def test_columns_that_are_no_vectors(columns: Any) -> None:
    with pytest.raises(ValueError, match=r"columns of a vector \[3\] cannot be"):
        InputSpec((3,), mean=(0.0,) * 3, std=(1.0,) * 3, columns=columns)


def test_test_values_beyond_those_of_training_are_its_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        data = own(tmp_path, leave_out=["grade"])
    assert [row[0] for row in rows(data, "test")] == [1.0, 0.0, 0.25]
    said = capsys.readouterr().out
    assert said.count("count as its smallest or largest, in age") == 1
    assert data.shape == (4,)


def test_the_label_may_be_any_column(tmp_path: Path) -> None:
    text = "id;y;x\nu;10;0\nv;9;1\nw;10;2\n"
    data = own(tmp_path, text, "x;y;id\n1;9;z\n", label="y", leave_out=["id"], delimiter=";")
    assert data.classes == ("9", "10")  # as numbers
    assert (rows(data, "test"), data.open("test").labels.tolist()) == ([[0.5]], [0])


def test_a_part_of_each_class_is_held_out(tmp_path: Path) -> None:
    lines = [f"{i},{'no' if i % 4 else 'yes'}" for i in range(40)]
    file = write(tmp_path / "own.csv", "\ufeffx,y\n" + "\n\n".join(lines))
    found = []
    for split in (0, 0, 1):
        data = csv(file, RUNTIME, test_fraction=0.2, split=split)
        assert np.bincount(data.open("test").labels).tolist() == [6, 2]
        assert np.bincount(data.open("train").labels).tolist() == [24, 8]
        found.append(rows(data, "test"))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": HEADER}, r"own\.csv has a header and no rows below it"),
        ({"train": ""}, "first line should name the columns"),
        ({"train": "a,b,a\n1,2,3\n"}, "more than one column 'a'"),
        ({"train": "a,,b\n1,2,3\n"}, "column 2 has no name"),
        ({"train": "a;b\n1;2\n"}, "one column only, 'a;b': set data.dataset.delimiter=';'"),
        (
            {"train": HEADER.encode() + b"1,\xe9,2,yes\n"},
            "line 2, is not UTF-8 text: save it",
        ),
        ({"train": TRAIN + "1,red,9\n"}, "line 6: 3 cells, where the header has 4 columns"),
        ({"train": TRAIN + '1,"red"x,9,no\n'}, "line 6, is not CSV"),
        ({"train": TRAIN + "1,red,,no\n"}, "line 6, column 'grade': the value is missing"),
        ({"train": TRAIN + "1, ,9,no\n"}, "line 6, column 'colour': the value is missing"),
        ({"train": TRAIN + "1,red,9,\n"}, "line 6, column 'bought': the value is missing"),
        ({"train": TRAIN + "old,red,9,no\n"}, "line 6, column 'age': 'old' is no finite number"),
        ({"train": TRAIN + "nan,red,9,no\n"}, "line 6, column 'age': 'nan' is no finite number"),
        ({"test": TEST + "old,red,9,no\n"}, "line 5, column 'age': 'old' is no finite number"),
        ({"test": TEST + "1,pink,9,no\n"}, "column 'colour': 'pink' was not in the training split"),
        ({"test": TEST + "1,red,9,maybe\n"}, "line 5, column 'bought': 'maybe' was not in the"),
        ({"test": "age,grade,bought\n1,9,no\n"}, "new.csv has no column 'colour'"),
        ({"label": "sold"}, "no column 'sold', which data.dataset.label names; it has age, colour"),
        ({"label": "bought", "leave_out": ["ages"]}, "no column 'ages', which .*leave_out names"),
        ({"categories": ["bought"]}, "'bought' is the label"),
        ({"leave_out": ["age", "colour", "grade"]}, "no column is left beside the label"),
        ({"train": HEADER + "1,red,9,no\n", "test": HEADER}, "the same label in column 'bought'"),
        ({"test_fraction": 1.5}, "test_fraction is between 0 and 1"),
        ({"delimiter": "::"}, "delimiter is one character"),
        ({"size": 8}, "does not apply to vectors"),
    ],
)
def test_mistakes_are_named_in_a_line(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        own(tmp_path, **changes).open("test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cells", ["5,1 -3,0 0,5", "5% 3,5% 7%", "1,234 1,234,567 3,000"])
def test_numbers_with_commas_or_percent_signs_are_no_categories(tmp_path: Path, cells: str) -> None:
    """Unless the column is named as one."""
    rows = [f"{cell};{label}\n" for label in "ab" for cell in cells.split()]
    text = "weight;class\n" + "".join(rows)
    with pytest.raises(ValueError, match=r"column 'weight', such as .*: write a point"):
        own(tmp_path, text, text, delimiter=";")
    assert own(tmp_path, text, text, delimiter=";", categories=["weight"]).shape == (3,)
    mended = text.replace(",", "").replace("%", "")
    assert own(tmp_path, mended, mended, delimiter=";").shape == (1,)


def test_a_column_of_names_is_neither_a_category_nor_a_label(tmp_path: Path) -> None:
    many = [f"name{i},{i % 2}" for i in range(150)]
    file = write(tmp_path / "own.csv", "\n".join(["who,y", *many]))
    with pytest.raises(ValueError, match=r"'who' has \d+ different texts: leave it out"):
        csv(file, RUNTIME)
    with pytest.raises(ValueError, match="'who' has 150 different values in 150 rows: name the"):
        csv(file, RUNTIME, label="who")
    with pytest.raises(ValueError, match=r"'name.*' was not in the training split"):
        csv(file, RUNTIME, categories=["who"])


def test_a_teacher_of_other_categories_is_refused(tmp_path: Path) -> None:
    data, other = own(tmp_path, leave_out=["grade"]), own(tmp_path, categories=["grade"])
    data.check(data.spec, 2)
    short = other.spec.__class__((4,), mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(ValueError, match=r"categories in columns \[\], but data .* \[\[1, 4\]\]"):
        data.check(short, 2)


@pytest.mark.parametrize(("name", "count", "width"), [("wine", 178, 13), ("digits", 1797, 64)])
def test_tables_are_split_by_class(name: str, count: int, width: int) -> None:
    drawn: list[torch.Tensor] = []
    for split in (0, 1):
        data = table(name, RUNTIME, split=split)
        halves = [data.open(which).stored(slice(0, 2000)) for which in ("train", "test")]
        shares = [torch.bincount(labels) / len(labels) for _, labels in halves]  # type: ignore[arg-type,type-var]
        assert (shares[0] - shares[1]).abs().max() < 0.01
        assert sum(len(x) for x, _ in halves) == count
        x = halves[0][0]
        assert x.shape[1:] == data.shape == (width,)
        assert (x.min(), x.max()) == (0, 1)
        drawn.append(halves[1][0])
    assert not torch.equal(*drawn)


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="there is no table 'iris': choose one of breast_cancer"):
        table("iris", RUNTIME)
    assert set(TABLES) >= {"wine", "digits"}


def test_what_is_held_out_is_a_fraction_of_each_class() -> None:
    labels = np.array([0] * 8 + [1] * 4 + [2])
    test = held_out(labels, 0.25, 0)
    assert np.bincount(labels[test], minlength=3).tolist() == [2, 1, 0]
