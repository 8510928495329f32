"""Agreement on a probe set is held against real accuracy, and the page says how far it goes."""

from __future__ import annotations

import json
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from benchmarks import agreement, plot, reproduce
from core.runtime import Runtime
from engine.card import RANKS
from engine.config import compose
from engine.train import run


def student(method: str, seed: int, accuracy: float, agrees: float) -> dict[str, Any]:
    by = {"deep_inversion": agrees, "dafl": 1 - agrees}
    figures = {"accuracy": accuracy, "agreement": agrees, "by": by, "own": 0.5 - agrees}
    return {"data": "digits", "method": method, "seed": seed, "noise": accuracy**2, **figures}


STUDENTS = [
    student("dafl", 0, 0.5, 0.3),
    student("zskt", 0, 0.7, 0.2),
    student("dafl", 1, 0.6, 0.35),
    student("zskt", 1, 0.9, 0.6),
]


def test_the_section_ranks_by_hand() -> None:
    """Ranks 1 3 2 4 of accuracy against 2 1 3 4 of agreement: 1 - 6·6/(4·15) = 0.4."""
    row = next(
        line
        for line in plot.agreement_section(STUDENTS).splitlines()
        if line.startswith("| digits")
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["digits", "4", "2", "0.40", "-1.00, 1.00", "0.40", "-0.40", "-0.40", "1.00"]
    assert "+27.5% on digits" in plot.agreement_section(STUDENTS)
    assert plot.agreement_section([]) == ""


def test_the_section_and_the_plot_stand_on_the_page_of_data_free_methods(tmp_path: Path) -> None:
    tables = reproduce.read_tables(reproduce.TABLES)
    assert "docs/results/agreement.svg" not in reproduce.made_files(tables, tmp_path)
    (tmp_path / "agreement.json").write_text(json.dumps(STUDENTS))
    files = reproduce.made_files(tables, tmp_path)
    assert files["docs/results/agreement.svg"] == plot.svg(STUDENTS)
    assert plot.agreement_section(STUDENTS) in files["docs/results/data-free.md"]


def test_the_model_card_states_what_was_found() -> None:
    students = json.loads((reproduce.RECORDS / "agreement.json").read_text())
    assert f" {len(students)} students " in RANKS
    for data, own in plot.by(students, "data").items():
        assert data in RANKS
        gap = statistics.median(s["accuracy"] - s["agreement"] for s in own)
        assert f"{100 * gap:.0f}" in RANKS
        accuracies, agreements = ([s[key] for s in own] for key in ("accuracy", "agreement"))
        assert f"{spearmanr(accuracies, agreements).statistic:.2f}" in RANKS


def test_the_plot_has_every_student_and_is_the_same_each_time() -> None:
    text = plot.svg(STUDENTS)
    assert plot.svg(STUDENTS) == text
    words = [e.text for e in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"dafl", "zskt", "digits: Spearman 0.40"} <= set(words)
    assert text.count("<use ") >= len(STUDENTS)


def test_a_run_is_measured_on_the_probe_of_its_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["steps=3", "evaluations=1", "data.training.steps=3", f"run_root={tmp_path}"]
    config = compose(["method=zskt", *short, f"run_dir={tmp_path / 'run'}", "device=cpu"])
    run(config, Runtime("cpu", seed=0))
    given = agreement.compose

    def small(words: list[str]) -> Any:
        without = given(words)
        without.probe = {
            "size": 16,
            "methods": {
                "zskt": ["steps=1"],  # the run's own: another takes its place
                "dafl": ["source.student_steps=1", "steps=1"],
                "zskd": ["synthesizer.iterations=1", "synthesizer.size=256", "steps=1"],
            },
        }
        return without

    monkeypatch.setattr(agreement, "compose", small)
    found = agreement.measured(tmp_path / "run")
    assert (
        found["accuracy"]
        == json.loads((tmp_path / "run/result.json").read_text())["student"]["accuracy"]
    )
    assert list(found["by"]) == ["dafl", "zskd"]
    assert found["agreement"] == pytest.approx(sum(found["by"].values()) / 2)
    assert len(list((tmp_path / "probes").iterdir())) == 2
