"""The cells of a table of results: a row's results, formatted for readers."""

from __future__ import annotations

import math
import statistics
from typing import Any

# Columns that describe the last synthesized inputs, with their keys in a result.
DIAGNOSTICS = {
    "class balance": "class_balance",
    "own agreement": "agreement",
    "diversity": "diversity",
    "distance": "frechet_distance",
}
OF_A_TEACHER = {"seeds", "teacher", "published", "device"}  # for rows that measure a teacher


def cells_of(row: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, str]:
    """Every column that a table may ask for."""
    cost = [r["cost"] for r in results]
    memory = statistics.mean(c["peak_memory_bytes"] for c in cost)
    cells = {
        "seeds": str(len(results)),
        "teacher": percentages([r["teacher"]["accuracy"] for r in results if r["teacher"]]),
        "student": percentages(accuracies(results)),
        "lowest": f"{min(accuracies(results)):.2%}",
        "agreement": percentages([r["student"]["agreement"] for r in results if r["teacher"]]),
        "robust": of_students("robust_accuracy", results),
        "published": f"{row['published']:.2%}" if "published" in row else "",
        "steps": between([c["steps"] for c in cost]),
        "images": between([c["images_synthesized"] for c in cost]),
        "queries": between([c["teacher_queries"] for c in cost]),
        "memory": f"{memory / 2**20:.0f} MiB",
        "time": f"{statistics.mean(c['wall_seconds'] for c in cost):.0f} s",
        "device": f"{device(results[0])}, {cost[0]['precision']}",
    } | {
        title: of_the_inputs([r["synthesized"].get(key) for r in results if "synthesized" in r])
        for title, key in DIAGNOSTICS.items()
    }
    if row.get("measures") == "teacher":
        return {key: cell if key in OF_A_TEACHER else "" for key, cell in cells.items()}
    return cells


def accuracies(results: list[dict[str, Any]]) -> list[float]:
    """The student's, at the last step."""
    return [r["student"]["accuracy"] for r in results]


def of_students(key: str, results: list[dict[str, Any]]) -> str:
    """A further figure of the students; empty in runs that did not measure it."""
    return percentages([r["student"][key] for r in results if key in r["student"]])


def of_the_inputs(values: list[float | None]) -> str:
    """The mean of a diagnostic; empty if a black-box teacher does not allow it."""
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.2f}" if known else ""


def between(counts: list[int]) -> str:
    """The count of all seeds, or the smallest and largest if a budget gave each its own."""
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def device(result: dict[str, Any]) -> str:
    name, threads = result["cost"]["device"], result["versions"]["threads"]
    return f"{name}, {threads} thread{'s' * (threads > 1)}" if name == "cpu" else name


def percentages(values: list[float]) -> str:
    """Mean ± standard deviation; empty if nothing was measured, as without a teacher."""
    if not values:
        return ""
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{mean:.2%}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.2f}")
