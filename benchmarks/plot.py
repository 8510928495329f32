"""The plots of the results, and the section that compares probe-set agreement with accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

from scipy.stats import spearmanr

TEXT = """
## Agreement on a probe set, as a stand-in for accuracy

Without test data, a student is measured by its agreement with the teacher on a probe set: inputs that
two methods which did not train it synthesize from the teacher (`engine/probe.py`). Here this agreement
is compared with real accuracy, by `python benchmarks/agreement.py`, over students of the rows
`digits-half-minute` and `mnist-2min`: not of all of them, the table says how many. Each seed has its own
teacher. The figures are Spearman's rank correlation with real accuracy, among all students of a data set
(all) and among those of each teacher (by teacher). For comparison there is agreement on the inputs that
the student was trained on (own inputs), and on uniform noise. These runs shared a machine with others, so
some made more steps than others in the same time. This makes the students more different; the rows
themselves are not kept.

| data | students | methods | all | by teacher | first method of the probe | second | own inputs | noise |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""  # noqa: E501


def agreement_section(students: Sequence[dict[str, Any]]) -> str:
    """The text and the table; empty without students.

    Args:
        students: as ``benchmarks/agreement.py`` keeps them.
    """
    if not students:
        return ""
    body = "".join(_line(data, of_data) for data, of_data in by(students, "data").items())
    gaps = ", ".join(
        f"{statistics.median(s['accuracy'] - s['agreement'] for s in of_data):+.1%} on {data}"
        for data, of_data in by(students, "data").items()
    )
    return (
        f"{TEXT}{body}\n![real accuracy against agreement on the probe set](agreement.svg)\n\n"
        f"Median of accuracy minus agreement: {gaps}. Agreement ranks students; it does not tell "
        "their accuracy.\n"
    )


def _line(data: str, students: Sequence[dict[str, Any]]) -> str:
    halves = [[list(s["by"].values())[i] for s in students] for i in (0, 1)]
    cells = [
        data,
        str(len(students)),
        str(len(by(students, "method"))),
        _rank(students, "agreement"),
        ", ".join(_rank(part, "agreement") for part in by(students, "seed").values()),
        *(_correlation(students, half) for half in halves),
        _rank(students, "own"),
        _rank(students, "noise"),
    ]
    return f"| {' | '.join(cells)} |\n"


def _rank(students: Sequence[dict[str, Any]], key: str) -> str:
    return _correlation(students, [s[key] for s in students])


def _correlation(students: Sequence[dict[str, Any]], values: Sequence[float]) -> str:
    return f"{spearmanr([s['accuracy'] for s in students], values).statistic:.2f}"


def by(students: Sequence[dict[str, Any]], key: str) -> dict[Any, list[dict[str, Any]]]:
    """The students grouped by the value of a key, in order of first appearance."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for student in students:
        found.setdefault(student[key], []).append(student)
    return found


def svg(students: Sequence[dict[str, Any]]) -> str:
    """One panel per data set, one point per student, a colour and a marker for each method."""
    sets, methods = by(students, "data"), sorted(by(students, "method"))
    with _drawn(1, len(sets), figsize=(4.4 * len(sets) + 1.4, 4.4)) as (axes, out):
        for axis, (data, of_data) in zip(axes, sets.items(), strict=True):
            for number, method in enumerate(methods):
                own = [s for s in of_data if s["method"] == method]
                x, y = [[100 * s[key] for s in own] for key in ("agreement", "accuracy")]
                marker = "os^"[number // 10]
                axis.scatter(x, y, s=22, color=f"C{number % 10}", marker=marker, label=method)
            axis.set(
                title=f"{data}: Spearman {_rank(of_data, 'agreement')}",
                xlabel="agreement on the probe set, %",
                ylabel="accuracy on the test set, %",
            )
            axis.grid(alpha=0.3)
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    return out.getvalue()


def plot_methods(title: str, accuracies: Mapping[str, Sequence[float]]) -> str:
    """One line per method, the best on top: every seed, their mean and standard deviation.

    Args:
        title: of the plot.
        accuracies: of the seeds of each method, fractions.
    """
    best = sorted(accuracies, key=lambda name: statistics.mean(accuracies[name]))
    with _drawn(1, 1, figsize=(7, 1.2 + 0.26 * len(best))) as ([axis], out):
        for height, name in enumerate(best):
            values = [100 * value for value in accuracies[name]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            axis.scatter(values, [height] * len(values), s=10, color="0.7", zorder=2)
            mean = statistics.mean(values)
            axis.errorbar(mean, height, xerr=spread, fmt="o", ms=4, capsize=2, color="C0")
            axis.annotate(
                f"{mean:.1f}",
                (1, height),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.set_yticks(range(len(best)), best)
        axis.set(title=title, xlabel="accuracy on the test set, %: seeds, mean, standard deviation")
        axis.set_ylim(-0.6, len(best) - 0.4)
        axis.grid(alpha=0.3, axis="x")
    return out.getvalue()


@contextmanager
def _drawn(*grid: int, figsize: tuple[float, float]) -> Iterator[tuple[list[Any], StringIO]]:
    """The axes of a figure, which is then written as SVG, with the same bytes each time."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "reverie", "font.size": 9}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(*grid, figsize=figsize, layout="constrained", squeeze=False)
        out = StringIO()
        yield list(axes.flat), out
        figure.savefig(out, format="svg", metadata={"Date": None})
        pyplot.close(figure)
