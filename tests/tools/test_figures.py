"""The report is readable with ten classes and with a thousand."""

from typing import Any

from tools.figures import in_lines


def found(count: int, **more: Any) -> dict[str, Any]:
    """Class i has i + 1 inputs, of which one is right; the next class is taken for the others."""
    rows = [
        {"name": f"class {i}", "inputs": i + 1, "accuracy": 1 / (i + 1), "agreement": None}
        | {"confidence": 0.5}
        for i in range(count)
    ]
    confusion = [[i, i, 1] for i in range(count)]
    confusion += [[i, (i + 1) % count, i] for i in range(1, count)]
    known = {"accuracy": 0.5, "ece": 0.1, "agreement": None, "ece_to_teacher": None}
    known |= {"teacher_accuracy": None, "network": "net.pth", "architecture": "Net", "data": "x"}
    known |= {"parameters": 1234, "inputs": 5, "reference": "label", "classes": rows}
    return known | {"confusion": confusion} | more


def test_every_class_of_a_few() -> None:
    lines = in_lines(found(10)).splitlines()
    assert sum(line.startswith("class ") for line in lines) == 1 + 10
    assert lines[-12].startswith("class 9 ")
    assert " ".join(lines[-9].split()) == "class 9 taken for class 0 9 of 10"
    assert "agreement" not in "\n".join(lines)


def test_the_worst_of_many() -> None:
    lines = in_lines(found(1000)).splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) < 100
    table = [line for line in lines if line.startswith("class ") and "%" in line]
    assert [line[:9] for line in table] == [f"class {999 - i}" for i in range(10)]
    assert "(the 10 worst of 1000 by accuracy; --json OUT holds all)" in lines


def test_odd_classes() -> None:
    given = found(3)
    given["classes"][0] |= {"inputs": 0, "accuracy": None, "confidence": None}
    given["classes"][1]["name"] = "a\x1b[31m\n" + "b" * 99
    given["confusion"] = [[1, 1, 2], [2, 2, 3]]
    text = in_lines(given)
    assert "(1 more have no inputs)" in text
    assert "\x1b" not in text
    assert "a?[31m?bbbbbbbbbbbbbbbbbbbbbb…" in text
    assert "largest confusions" not in text
