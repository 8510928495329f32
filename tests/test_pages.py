"""The pages of the results say what was run, what has changed since and what was not run."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot, reproduce, summary
from benchmarks.columns import cells_of, device
from benchmarks.page import TITLES, topic_page
from benchmarks.records import Kept, keep
from benchmarks.summary import Figures, findings
from tests.test_benchmarks import ROWS, TABLES, result


def line(row: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    """A line that is current, unless ``more`` says other settings."""
    what = result(accuracy)
    kept = {"row": row, "seed": seed, "overrides": ROWS[row]["overrides"], "settings": {}}
    return kept | {"versions": what.pop("versions"), "result": what} | more


def kept(folder: Path, *lines: dict[str, Any]) -> Kept:
    for table in TABLES:
        names = {row["name"] for row in table["rows"]}
        if own := [line for line in lines if line["row"] in names]:
            keep(table, own, folder)
    return Kept(folder)


def test_columns_are_computed() -> None:
    cells = cells_of({"published": 0.95}, [result(0.9, 10), result(0.8, 20)])
    assert cells["student"] == "85.00% ± 7.07"
    assert (cells["lowest"], cells["published"]) == ("80.00%", "95.00%")
    assert (cells["time"], cells["memory"], cells["queries"]) == ("15 s", "1024 MiB", "2,000")
    for table in TABLES:
        columns = [*table["columns"], *table.get("summary", {}).get("columns", [])]
        assert set(columns) <= set(cells)


def test_what_was_synthesized_has_columns() -> None:
    """Their mean, over the runs whose teacher reveals what they take."""
    found = [{"class_balance": 0.5, "agreement": 0.9}, {"class_balance": 1.0, "agreement": 0.8}]
    results = [result(0.9) | {"synthesized": more} for more in found]
    cells = cells_of({}, [*results, result(0.9)])
    assert (cells["class balance"], cells["own agreement"]) == ("0.75", "0.85")
    assert cells["distance"] == ""


def test_a_run_without_a_teacher_has_empty_columns() -> None:
    alone = result(0.9) | {"teacher": None}
    cells = cells_of({}, [alone])
    assert (cells["teacher"], cells["agreement"], cells["student"]) == ("", "", "90.00%")


def test_a_device_is_named_with_its_threads_where_they_matter() -> None:
    on_gpu = result(0.9)
    on_gpu["cost"]["device"] = "NVIDIA H100"
    assert (device(result(0.9)), device(on_gpu)) == ("cpu, 2 threads", "NVIDIA H100")


def test_a_row_that_measures_a_teacher_shows_nothing_of_its_student() -> None:
    cells = cells_of(ROWS["cifar10-public-teacher"], [result(0.0944)])
    assert {key for key, cell in cells.items() if cell} == {"seeds", "teacher", "device"}


def test_pages_hold_what_was_run_and_say_what_was_not(tmp_path: Path) -> None:
    found = kept(tmp_path, line("digits", 1, 0.9))
    texts = [summary.summary_page(TABLES, found)]
    texts += [topic_page(name, TABLES, found) for name in TITLES]
    [row] = [
        x
        for text in texts
        for x in text.splitlines()
        if "the default command:" in x and x[0] == "|"
    ]
    assert "| 1 | 99.00% | 90.00% |" in row
    said = " ".join(texts).replace("\n", " \n")
    missing = " ".join(re.findall("Not run yet: (.*)", said))
    missing += " ".join(" ".join(text.split("\n## Not run yet\n")[1:]) for text in texts)
    counts = re.findall(r"`([^`]+)`(?: \((\d+)\))?", missing)
    assert sum(int(n or 1) for _, n in counts) == len(ROWS) - 1
    assert ("mnist-2min-{method}", "19") in counts
    assert "digits" not in dict(counts)


def test_a_row_is_marked_with_what_has_changed_since(tmp_path: Path) -> None:
    lines = [
        line("mnist-dfq", 0, 0.9, settings={"method/dfq": "other", "data/mnist": "other"}),
        line("mnist-zskt", 0, 0.8, overrides=["steps=1"]),
        line("mnist-dafl", 0, 0.7),
    ]
    text = summary.summary_page(TABLES, kept(tmp_path, *lines))
    rows = {
        name: next(x for x in text.splitlines() if f": {name}" in x and x[0] == "|")
        for name in ("DFQ", "ZSKT", "DAFL")
    }
    assert [" † |" in row for row in rows.values()] == [True, True, False]
    assert "90.00%" in rows["DFQ"]  # and stays to be seen
    assert (
        "† Changed since the run: `configs/data/mnist.yaml`, `configs/method/dfq.yaml` "
        "(`mnist-dfq`); the command (`mnist-zskt`)."
    ) in text
    assert "†" not in summary.summary_page(TABLES, kept(tmp_path / "current", lines[2]))


def test_what_did_not_help_is_in_an_appendix(tmp_path: Path) -> None:
    run = [line(table["rows"][0]["name"], 0, 0.9) for table in TABLES if table.get("appendix")]
    text = topic_page("transfer", TABLES, kept(tmp_path, *run), more="\n## A section\n")
    body, appendix = text.split("\n## Appendix: what did not help\n")
    titles = [table["title"] for table in TABLES if table.get("appendix")]
    assert len(titles) == 2
    for title in titles:
        assert f"### {title}" in appendix
        assert title not in body
    assert "## A section" in body


def test_every_table_has_a_page() -> None:
    pages = {table["page"] for table in TABLES}
    assert pages == {"results", *TITLES}
    for name in TITLES:  # and a way to it
        assert f"(results/{name}.md)" in summary.LINKS
    assert len({table["name"] for table in TABLES}) == len(TABLES)


def test_findings_are_filled_in_from_what_is_kept(tmp_path: Path) -> None:
    found = kept(
        tmp_path,
        *(line("digits", seed, accuracy) for seed, accuracy in ((0, 0.9), (1, 0.8))),
        line("digits-control", 0, 0.2),
        line("mnist-2min-dfq", 0, 0.95),
        line("mnist-2min-zskt", 0, 0.96),
        line("mnist-2min-dafl", 0, 0.94),
        line("mnist-2min-nayer-one-hot", 0, 0.99),
    )
    (tmp_path / "plain.json").write_text('{"ratio": {"median": 0.8765}}')
    figures = Figures(TABLES, found)
    for text, told in (
        ("{digits}, {digits teacher}", "85.00% ± 7.07, 99.00% ± 0.00 (2 seeds)"),
        ("{digits less digits-control}", "65.0 points (1 to 2 seeds each)"),
        (
            "{best 2 of mnist-two-minutes} of {number of mnist-two-minutes}",
            "`zskt` 96.00%, `dfq` 95.00% of 3 (1 seed each)",
        ),
        ("{cost plain ratio median}", "0.88"),
        ("{cost none ratio}", None),
        ("{digits}, {mnist-dfq}", None),
        ("{best 2 of ablation}", None),
    ):
        assert figures.filled(text) == told
    with pytest.raises(ValueError, match="digitz, which no table has"):
        figures.filled("{digitz}")


def test_every_finding_can_be_told(tmp_path: Path) -> None:
    """Where all rows have run: it names rows, tables and columns that there are."""
    lines = [line(name, seed, 0.9) for name, row in ROWS.items() for seed in row["seeds"]]
    found = kept(tmp_path, *lines)
    for file in reproduce.RECORDS.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    written = summary.FINDINGS.read_text().count("- text:")
    assert len(list(findings(Figures(TABLES, found), readme=False))) == written


def test_the_readme_states_current_figures_alone(tmp_path: Path) -> None:
    lines = [line("digits", 0, 0.9), line("digits-control", 0, 0.2), line("mnist-reverie", 0, 0.7)]
    old = line("mnist-reverie", 0, 0.7, settings={"method/reverie": "other"})
    text = f"before\n{summary.BEGIN}\nwhatever\n{summary.END}\nafter\n"
    both = summary.readme(TABLES, kept(tmp_path / "both", *lines), text)
    one = summary.readme(TABLES, kept(tmp_path / "one", *lines[:2], old), text)
    assert ("90.00%" in both, "70.00%" in both, "whatever" in both) == (True, True, False)
    assert ("90.00%" in one, "70.00%" in one) == (True, False)
    assert both.startswith("before\n")
    assert both.endswith("\nafter\n")
    assert "70.00% " in summary.summary_page(TABLES, Kept(tmp_path / "one"))


def test_the_readme_is_made_from_what_is_kept() -> None:
    """`python benchmarks/reproduce.py --table` makes it, and drops rows that are not current."""
    text = (reproduce.ROOT / "README.md").read_text()
    assert summary.readme(TABLES, Kept(reproduce.RECORDS), text) == text


def test_every_link_of_the_pages_leads_to_a_file_that_is_made(tmp_path: Path) -> None:
    (tmp_path / "agreement.json").write_text("[]")
    files = reproduce.made_files(TABLES, tmp_path)
    for name, text in files.items():
        if name.startswith("docs/") and name.endswith(".md"):
            for link in re.findall(r"\]\(([^)]+)\)", text):
                target = ((reproduce.ROOT / name).parent / link).resolve()
                made = str(target.relative_to(reproduce.ROOT)) in files
                assert made or (target.suffix == ".png" and target.is_file()), link


def test_the_plot_ranks_methods_and_is_the_same_each_time() -> None:
    found = {"dafl": [0.5, 0.7], "zskt": [0.9], "dfq": [0.8, 0.8]}
    text = plot.plot_methods("title", found)
    assert plot.plot_methods("title", found) == text
    assert len(text) < 200_000
    words = [e.text for e in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert [w for w in words if w in found] == ["dafl", "dfq", "zskt"]  # from below
    assert {"title", "60.0", "80.0", "90.0"} <= set(words)
