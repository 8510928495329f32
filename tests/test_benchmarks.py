"""The rows of the results are commands that compose, and are run and kept as they say."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import train
from benchmarks import loss_time, reproduce
from benchmarks.cost import cost_page
from benchmarks.records import Kept, read_lines
from benchmarks.reproduce import commands, read_tables, written_out
from core.build import build
from engine.choices import groups
from engine.config import compose, plain
from engine.overrides import ALIASES, Setting, sort_overrides

TABLES = read_tables(reproduce.TABLES)
ROWS = {row["name"]: row for table in TABLES for row in table["rows"]}


def result(accuracy: float, seconds: float = 10.0) -> dict[str, Any]:
    student = {"accuracy": accuracy, "agreement": accuracy}
    cost = {"steps": 100, "images_synthesized": 1000, "teacher_queries": 2000}
    cost |= {"peak_memory_bytes": 2**30, "wall_seconds": seconds}
    more = {"device": "cpu", "precision": "fp32"}
    parts = {"teacher": {"accuracy": 0.99}, "student": student, "cost": cost | more}
    return parts | {"versions": {"torch": "2.14.1", "threads": 2}}


def left_in(run: Path, what: dict[str, Any]) -> Path:
    """A run directory as a finished run leaves it."""
    run.mkdir(parents=True)
    versions = what.pop("versions")
    (run / "result.json").write_text(json.dumps(what))
    (run / "versions.json").write_text(json.dumps(versions))
    choices = {"method": "dfq", "data": "digits", "loss": ["at", "rkd"]}
    config = {"choices": choices, "needs_teacher": True, "teacher": {"checkpoint": None}}
    (run / "config.yaml").write_text(json.dumps(config))
    return run


def test_every_row_composes() -> None:
    """Every choice is one that there is, and every part of a row composes with some row.

    A part is a choice of a group with the keys that the row sets in it, or the method with all
    other keys. A choice on its own composes in test_config.py, test_contracts.py and the networks'
    tests.
    """
    seen: set[tuple[str, ...]] = set()
    known = groups()
    for name, row in ROWS.items():
        texts = " ".join([name, row["title"], *row["overrides"]])
        assert set(re.findall(r"(?<!\$){\w+}", texts)) <= {"{runs}", "{seed}"}
        mistakes: list[str] = []
        chosen, settings = sort_overrides(row["overrides"], known, mistakes)
        assert not mistakes, name
        if new := parts_of(chosen, settings) - seen:
            seen |= new
            assert compose(row["overrides"]).seed == 0, name


def parts_of(chosen: list[str], settings: list[Setting]) -> set[tuple[str, ...]]:
    """The parts that set keys; one number is as good as another."""
    owners = {group: f"{role}." for role, group in ALIASES.items()}
    owners |= {group: f"{group}." for group in ("data", "generator")}
    parts: dict[str, list[str]] = {}
    choices = list(chosen)
    for choice in chosen:
        group, _, value = choice.partition("=")
        if group == "loss":
            choices += (names := re.findall(r"\w+", value))
            parts |= {f"distiller.losses.{name}.": [name] for name in names}
        else:
            parts.setdefault(owners.get(group, "rest"), []).append(choice)
    for s in settings:
        value = type(s.value).__name__ if isinstance(s.value, (int, float)) else s.text
        owner = next((part for part in parts if s.key.startswith(part)), "rest")
        owner = owner if "." in s.key else s.key  # which every method has
        parts.setdefault(owner, []).append(f"{s.mark}{s.key}={value}")
    return {(part, *words) for part, words in parts.items() if set(words) - set(choices)}


def test_a_row_for_several() -> None:
    entry = {"name": "x-{loss}", "title": "`{loss}`", "overrides": ["loss={loss}"]}
    one, two = written_out(
        {**entry, "each": {"loss": {"kd": {}, "at": {"overrides": ["seed=1"], "note": "n"}}}}
    )
    assert (one["name"], one["overrides"]) == ("x-kd", ["loss=kd"])
    assert (two["title"], two["overrides"], two["note"]) == ("`at`", ["loss=at", "seed=1"], "n")
    nested = {"kd": {"less": 1, "means": "weight {less}"}}
    [named] = written_out({**entry, "title": "{loss}, {means}", "each": {"loss": nested}})
    assert named["title"] == "kd, weight 1"
    listed = written_out({**entry, "each": {"loss": ["a", "b"]}})
    assert [row["name"] for row in listed] == ["x-a", "x-b"]
    [plain] = written_out({"name": "x", "title": "", "overrides": []})
    assert plain["name"] == "x"
    assert len(ROWS) == sum(len(table["rows"]) for table in TABLES), "two rows of one name"


def test_a_row_for_each_pair_of_choices() -> None:
    pairs = {
        "a-b": {"teacher": "a", "beta": 2, "published": {"kd": 0.5, "dkd": 0.6}},
        "c-d": {"teacher": "c", "overrides": ["lr=1"], "beta": 8, "published": {"dkd": 0.7}},
    }
    losses = {"kd": {}, "dkd": {"overrides": [["~kd"], "loss={loss}", "beta={beta}"]}}
    entry = {"name": "{pair}-{loss}", "title": "{teacher}", "overrides": ["t={teacher}"]}
    rows = {
        row["name"]: row for row in written_out({**entry, "each": {"pair": pairs, "loss": losses}})
    }
    assert list(rows) == ["a-b-kd", "a-b-dkd", "c-d-kd", "c-d-dkd"]
    assert rows["a-b-kd"]["overrides"] == ["t=a"]
    assert rows["c-d-dkd"]["overrides"] == ["t=c", "lr=1", "~kd", "loss=dkd", "beta=8"]
    assert [row.get("published") for row in rows.values()] == [0.5, 0.6, None, 0.7]


def test_every_pair_of_crds_tables_has_its_rows() -> None:
    """Of 13 pairs with six losses each; light students learn at a fifth of the rate."""
    rows = [row for name, row in ROWS.items() if name.startswith("cifar100-")]
    assert len({row["pair"] for row in rows}) * 6 == len(rows) == 13 * 6
    seen: set[str] = set()
    for row in rows:
        light = row["student"].startswith(("mobilenet", "shufflenet"))
        assert ("optimizer.lr=0.01" in row["overrides"]) == light
        if {row["loss"], row["student"]} <= seen:
            continue
        seen |= {row["loss"], row["student"]}
        config = compose(row["overrides"])
        assert config.optimizer.lr == (0.01 if light else 0.05)
        assert set(config.distiller.losses) == {"cross_entropy", row["loss"]}
        assert config.distiller.losses.cross_entropy.weight == (0.1 if row["loss"] == "kd" else 1.0)
        assert f"{config.choices.teacher}-{config.choices.student}" == row["pair"]


def test_an_optional_row_is_run_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, listed in (([], False), (["mnist-10min-dfq"], True), (["mnist-10min"], True)):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--list", *names])
        assert reproduce.main() == 0
        assert ("mnist-10min-dfq" in capsys.readouterr().out) == listed


def test_a_run_of_other_settings_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "RECORDS", tmp_path / "results")
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **__: None)
    for seed in ROWS["digits"]["seeds"]:
        left_in(tmp_path / "digits" / f"seed{seed}", result(0.9))
    arguments = ["reproduce.py", "digits", "--runs", str(tmp_path), "--"]
    monkeypatch.setattr(sys, "argv", [*arguments, "steps=5"])
    assert reproduce.main() == 0
    assert not (tmp_path / "results").exists()
    monkeypatch.setattr(sys, "argv", [*arguments, "device=cpu"])
    assert reproduce.main() == 0
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["main.jsonl"]  # and no more
    assert Kept(tmp_path / "results").lines(ROWS["digits"])


def test_a_row_of_seconds_has_a_budget(tmp_path: Path) -> None:
    row = {"name": "x", "overrides": ["method=dfq"], "seeds": [0, 1], "seconds": 120}
    found = commands(row, tmp_path, ["a=b"])
    assert [c[:4] for c in found] == [["train.py", "method=dfq", "a=b", "budget=120s"]] * 2
    assert [c[4] for c in found] == ["seed=0", "seed=1"]


def test_a_row_that_fails_does_not_keep_the_others_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run(command: list[str], **_: Any) -> None:
        run_dir = Path(next(c.split("=", 1)[1] for c in command if c.startswith("run_dir=")))
        asked.append(f"{run_dir.parent.name}-{run_dir.name}")
        if asked[-1] == "digits-few-kd-seed0":
            raise reproduce.subprocess.CalledProcessError(1, command)
        left_in(run_dir, result(0.9))

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    monkeypatch.setattr(reproduce, "RECORDS", tmp_path / "results")
    names = ["digits-few-kd", "digits-few-skd"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *names, "--runs", str(tmp_path)])
    assert reproduce.main() == 1
    assert asked == ["digits-few-kd-seed0", *(f"digits-few-skd-seed{n}" for n in range(3))]
    lines = read_lines(tmp_path / "results" / "few-labels.jsonl")
    assert {line["row"] for line in lines} == {"digits-few-skd"}
    assert "digits-few-kd: python train.py method=kd" in capsys.readouterr().out


def test_a_row_goes_on_from_an_earlier_one(tmp_path: Path) -> None:
    """A chain of assistants: each seed's teacher is what the row before left at that seed."""
    row = {
        "name": "b",
        "overrides": ["teacher.checkpoint='{runs}/a/seed{seed}/s'"],
        "seeds": [0, 3],
    }
    for seed, command in zip((0, 3), commands(row, tmp_path, []), strict=True):
        assert command[1] == f"teacher.checkpoint='{tmp_path}/a/seed{seed}/s'"
    names = list(ROWS)
    for name in names:
        for earlier in re.findall(r"{runs}/([^/]+)/", " ".join(ROWS[name]["overrides"])):
            assert names.index(earlier) < names.index(name)
            assert ROWS[earlier]["seeds"] == ROWS[name]["seeds"]


def test_what_a_loss_adds_is_measured_in_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of each kind: plain, with a schedule, with labels and indices, with other networks."""
    monkeypatch.setattr(loss_time, "COUNT", 40)
    monkeypatch.setattr(loss_time, "WARM_UP", 1)
    small = ["batch_size=4", "device=cpu", "teacher.model.width=1"]
    figures = loss_time.measure_losses(["at", "ab", "crd", "simkd"], small, 2)
    assert list(figures["losses"]) == ["at", "ab", "crd", "simkd"]
    for loss in figures["losses"].values():
        assert 0 < loss["ratio"]["min"] <= loss["ratio"]["median"] <= loss["ratio"]["max"]
    (tmp_path / "loss_time_fp32.json").write_text(json.dumps(figures))
    assert "Not run yet." in cost_page(tmp_path / "nothing")
    text = cost_page(tmp_path)
    assert "Not run yet." not in text
    assert re.search(r"\| `ab` \| \d+ ms \| \d+ ms \| \d+\.\d\d \(", text)


def test_every_loss_can_be_measured() -> None:
    """A schedule switches none off at both moments, and every command composes."""
    for loss in groups()["loss"]:
        overrides = [*loss_time.DEFAULTS, *loss_time.NETWORKS.get(loss, []), f"loss={loss}"]
        entries = plain(compose(overrides))["distiller"]["losses"].values()
        schedules = [build(e["schedule"]) for e in entries if e.get("schedule")]
        assert any(all(factor(at) for factor in schedules) for at in (0.5, 0.1)), loss


def test_a_chain_of_assistants_runs(tmp_path: Path) -> None:
    """TAKD, whose teacher the assistant is, and DGKD, which it guides beside the first teacher."""
    short = ["data.training.steps=3", "device=cpu", "evaluations=1", "checkpoints=1"]
    results = {}
    for name in ("digits-few-assistant", "digits-few-takd", "digits-few-dgkd"):
        command = commands(ROWS[name], tmp_path, [*short, f"run_root={tmp_path}"])[0]
        assert train.main(command[1:]) == 0
        results[name] = json.loads((tmp_path / name / "seed0" / "result.json").read_text())
    assistant, takd, dgkd = results.values()
    assert takd["teacher"]["parameters"] == assistant["student"]["parameters"]
    assert takd["teacher"]["accuracy"] == assistant["student"]["accuracy"]
    assert dgkd["teacher"] == assistant["teacher"]
    assert takd["student"]["parameters"] == dgkd["student"]["parameters"]


def test_an_unknown_row_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reproduce.py", "digitz"])
        with pytest.raises(SystemExit):
            reproduce.main()
    assert "no row digitz" in capsys.readouterr().err
