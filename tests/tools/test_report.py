"""A report: which runs make a group, what their figures are, and that the page is harmless."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.report.__main__ import main
from tools.report.curves import mean_curve, thinned
from tools.report.runs import find, grouped, read_runs

PNG = b"\x89PNG\r\n\x1a\n and so on"
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&\u202e"


def config(**more: Any) -> dict[str, Any]:
    """In the layout of ours."""
    choices = {"method": "dafl", "data": "digits", "student": "small", "teacher": "big"}
    known = {"choices": choices, "data_free": True, "distiller": {}, "needs_teacher": True}
    known |= {"seed": 0, "source": {}, "student": {}, "steps": 20, "budget": None}
    return known | {"optimizer": {"lr": 0.1}, "run_dir": "somewhere"} | more


def result(accuracy: float | None = 0.5, **more: Any) -> dict[str, Any]:
    what = "the test split of digits: 360 inputs"
    figures = {"accuracy": accuracy, "agreement": 0.25, "ece": 0.125, "parameters": 1234}
    cost = {"wall_seconds": 30.0, "synthesis_seconds": 12.0, "device": "cpu", "steps": 20}
    whole = {"schema": 2, "status": "finished", "student": figures, "cost": cost}
    return whole | {"teacher": {"accuracy": 0.75}, "measured_on": {"what": what}} | more


def write(path: Path, settings: dict[str, Any], found: dict[str, Any] | None = None) -> Path:
    """A run directory, of a finished run if there is a result."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    (path / "versions.json").write_text('{"torch": "2", "python": "3", "threads": 1}')
    (path / "inputs.png").write_bytes(PNG)
    lines = [{"step": 5 * i, "loss/student/kd": 1 / i, "system/seconds": 2.0 * i} for i in (1, 2)]
    lines += [{"step": 5 * i, "eval/accuracy": 0.1 * i} for i in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if found is not None:
        (path / "result.json").write_text(json.dumps(found))
    return path


class Page(HTMLParser):
    """Its text, its elements, and the cells of its rows by the first cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text, self.inside = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        return next(row[1:] for row in self.rows if row[0] == first)


def page(tmp_path: Path, *runs: Path) -> Page:
    out = tmp_path / "report.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    return Page(out.read_text())


def test_seeds_are_one_group_with_mean_and_deviation(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.9, 0.8, 0.7)):
        settings = config(seed=seed, run_dir=f"elsewhere/{seed}")
        write(tmp_path / "runs" / f"a{seed}", settings, result(accuracy))
    write(tmp_path / "runs" / "b", config(optimizer={"lr": 0.2}), result(0.6))
    found = page(tmp_path, tmp_path / "runs")
    assert "4 runs in 2 groups" in found.text
    one, other = found.row("dafl, optimizer.lr=0.1"), found.row("dafl, optimizer.lr=0.2")
    assert one[:2] == ["3", "80.00 % ± 10.00 %lowest 70.00 %"]
    assert other[:2] == ["1", "60.00 %"]
    assert one[4:6] == ["75.00 %", "1,234"]
    assert found.row("optimizer.lr") == ["0.1", "0.2"]  # what was asked
    assert found.row("steps") == ["20"]  # of all
    assert sum(tag == "img" for tag, _ in found.elements) == 4
    assert not any(row[0] in ("seed", "run_dir") for row in found.rows)


def test_of_many_differences_those_made_on_purpose_are_shown(tmp_path: Path) -> None:
    for name, more in (("a", 0), ("b", 20)):
        parts = {f"key{i}": name for i in range(more)} | {"weight": more}
        write(tmp_path / "runs" / name, config(source=parts), result())
    text = page(tmp_path, tmp_path / "runs").text
    shown, _, folded = text.partition("20 more settings in which they differ")
    assert "source.weight020" in shown
    assert "source.key" not in shown
    assert "source.key7-b" in folded


def test_what_a_budget_made_of_the_steps_does_not_part_seeds(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / str(seed), config(seed=seed, steps=20 + seed, budget="1m"))
        for seed in (0, 1)
    ]
    assert len(grouped([read_runs(run) for run in runs])) == 1


def test_nothing_in_a_run_gets_out_of_its_place(tmp_path: Path) -> None:
    evil = config(choices={"method": EVIL, "data": "d", "student": "s"}, **{EVIL: EVIL})
    figures = result(measured_on={"what": EVIL})
    figures["cost"] |= {"device": EVIL, "precision": EVIL}
    path = write(tmp_path / "<b>run", evil, figures)
    write(tmp_path / "other", config(), result())
    with open(path / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"step": s, f"loss/{EVIL}": 1.5}) + "\n" for s in (1, 2))
    found = page(tmp_path, path, tmp_path / "other")
    assert found.text.count("<script>alert(1)</script>\"'><img") > 5
    assert "\u202e" not in found.text
    for tag, attributes in found.elements:
        assert tag not in ("script", "link", "iframe", "object", "base", "b" * 9)
        assert not any(name.startswith("on") for name in attributes)
    check_self_contained(found, (tmp_path / "report.html").read_text())


def check_self_contained(found: Page, text: str) -> None:
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,"), (tag, value)
    assert "url(" not in text
    assert "@import" not in text
    assert "://" not in text
    policy = next(a["content"] for t, a in found.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_an_unfinished_run_is_shown_with_what_it_has(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "done", config(seed=1), result())
    going = write(tmp_path / "runs" / "going", config())
    (going / "inputs.png").unlink()
    (going / "result.json").write_text('{"status": "as it was before"}')
    with open(going / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "loss/student/kd": 0.25}\n{"step": 20, "loss/stu')
    found = page(tmp_path, tmp_path / "runs")
    assert found.row("dafl")[:2] == ["1 finished of 2", "50.00 %"]
    state = "unfinished, at step 15 of 20; accuracy at step 10: 20.00 %"
    assert f"{going}: {state}" in found.text
    assert found.row(str(going))[2] == state


def test_agreement_is_compared_where_there_are_no_labels(tmp_path: Path) -> None:
    measured = {"what": "128 inputs synthesized from the teacher by two methods"}
    write(tmp_path / "runs" / "a", config(), result(None, measured_on=measured))
    found = page(tmp_path, tmp_path / "runs")
    assert found.row("dafl")[1:3] == ["-", "25.00 %"]
    assert f"Measured on {measured['what']}." in found.text
    write(tmp_path / "runs" / "b", config(steps=40), result())
    assert "on different inputs cannot be compared" in page(tmp_path, tmp_path / "runs").text


def test_times_add_up(tmp_path: Path) -> None:
    figures = result()
    figures["cost"] |= {"timing_seconds": 2.0, "distillation_seconds": 10.0}
    write(tmp_path / "run", config(), figures)
    rows = [row for row in page(tmp_path, tmp_path / "run").rows if row[0] == "dafl"]
    assert rows[1][1:7] == ["32.0 s", "2.0 s", "12.0 s", "10.0 s", "0.0 s", "8.0 s"]


def test_only_a_report_gives_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write(tmp_path / "run", config(), result()), tmp_path / "report.html"
    for _ in range(2):
        assert main([str(run), "--out", str(out)]) == 0
    for name, content in (("mine.html", "<!doctype html>\n<p>mine"), ("empty", "")):
        (tmp_path / name).write_text(content)
        assert main([str(run), "--out", str(tmp_path / name)]) == 1
        assert (tmp_path / name).read_text() == content
    assert main([str(run), "--out", str(tmp_path)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(line.startswith("error: ") and "give another to --out" in line for line in errors)


def test_what_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, empty, out = write(tmp_path / "run", config()), tmp_path / "empty", tmp_path / "out.html"
    empty.mkdir()
    (empty / "config.yaml").write_text("a: 1")
    assert main([str(empty), str(tmp_path / "none"), "--out", str(out)]) == 1
    assert not out.exists()
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(f"error: {empty} is not a run and holds none")
    assert errors[1].startswith(f"error: {tmp_path / 'none'} does not exist")
    assert main([str(empty), str(run), "--out", str(out)]) == 1
    assert out.exists()
    (probes := tmp_path / "probes").mkdir()  # beside runs, as in ``runs/*``
    assert find([run, probes]) == ([run], [])
    (tmp_path / "same").symlink_to(run)
    assert find([run, tmp_path, tmp_path / "same"])[0] == [run]


def test_nothing_in_a_run_is_run_or_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hidden-value")
    here = tmp_path / "made"
    nodes = {"_target_": "os.mkdir", "_args_": [str(here)], "x": "${oc.env:SECRET}"}
    run = write(tmp_path / "run", config(source=nodes), result())
    assert "hidden-value" not in page(tmp_path, run).text
    tagged = f"x: !!python/object/apply:os.mkdir [{here}]\n"
    with open(run / "config.yaml", "a") as file:
        file.write(tagged)
    assert main([str(run), "--out", str(tmp_path / "report.html")]) == 1
    assert not here.exists()


@pytest.mark.parametrize(
    "damage",
    [
        {"result.json": '{"status": "finished", "student": 5, "cost": {"wall_seconds": "x"}}'},
        {"result.json": "[1]", "versions.json": "{", "inputs.png": "no picture"},
        {"metrics.jsonl": '5\n{"step": "x"}\n{"step": 1e999}\n{"step": 1, "a/b": {}}\n\xff'},
        {"metrics.jsonl": '{"step": 1, "eval/accuracy": ' + "9" * 400 + "}\n"},
        {"metrics.jsonl": '{"step": 1, "eval/ece": -1e299}\n{"step": 2, "eval/ece": 1e299}'},
        {"result.json": '{"status": "finished", "cost": {"steps": ' + "9" * 400 + "}}"},
    ],
)
def test_damaged_files_are_no_obstacle(tmp_path: Path, damage: dict[str, str]) -> None:
    run = write(tmp_path / "run", config(), result())
    for name, content in damage.items():
        (run / name).write_text(content, encoding="latin-1")
    found = page(tmp_path, run)
    assert "1 run in 1 group" in found.text
    assert any(tag == "img" for tag, _ in found.elements) == ("inputs.png" not in damage)


def test_tags_of_earlier_runs(tmp_path: Path) -> None:
    run = write(tmp_path / "run", config(), result())
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "test/ece": 0.5, "source/bn": 2, "student/a": 3}'
    )
    expected = {"eval/ece": [(1, 0.5)], "loss/source/bn": [(1, 2.0)], "loss/student/a": [(1, 3.0)]}
    assert read_runs(run).series == expected


def test_means_of_curves() -> None:
    one = {5: (5.0, 1.0), 7: (7.0, 9.0), 10: (10.0, 2.0)}
    other = {5: (15.0, 3.0), 10: (20.0, 6.0), 15: (30.0, 7.0)}
    assert mean_curve([one, other]) == [(10.0, 2.0), (15.0, 4.0)]
    long = [(float(i), float(i % 2)) for i in range(3000)]
    assert len(thinned(long)) == 300
    assert thinned(long)[0] == (4.5, 0.5)
    assert thinned(long[:300]) == long[:300]
