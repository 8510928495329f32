"""One HTML page that compares runs: what was asked, curves, pictures, figures and costs.

python -m tools.report runs/*
python -m tools.report runs/dafl-* runs/dfq-* --out losses.html

RUNS are run directories, or folders that hold some. Runs that differ in their seed alone make one
group, with the mean and the sample standard deviation over the seeds. The page needs no other file
and no network; nothing that stands in a run directory is run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.files import write_whole
from engine.ownership import CONFIG, METRICS, PICTURE, RESULT, VERSIONS, laid_out, mapping
from engine.run import NOT_IDENTITY
from tools.report_page import MARK, page
from tools.report_runs import Group, Run

LARGEST_PICTURE = 8 << 20  # bytes; ours have a few hundred thousand at most
EARLIER = {"test/": "eval/", "student/": "loss/student/", "source/": "loss/source/"}  # of tags


def find(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Run directories among the paths and below them, each once; and what is wrong elsewhere."""
    found: dict[Path, Path] = {}
    mistakes = []
    for path in paths:
        below = [path] if _is_run(path) else []
        if not below and path.is_dir():
            below = sorted(p.parent for p in path.rglob(CONFIG) if _is_run(p.parent))
        if not below:
            what = "is no run and holds none" if path.exists() else "does not exist"
            mistakes.append(f"{path} {what}: give run directories, or folders that hold some")
        for run in below:
            found.setdefault(run.resolve(), run)
    return list(found.values()), mistakes


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and laid_out(mapping(path / CONFIG))


def read(path: Path) -> Run:
    """A run directory; what is missing or damaged in it is left out."""
    result = _json(path / RESULT)
    return Run(
        path,
        dict(flattened(mapping(path / CONFIG))),
        result if result.get("status") == "finished" else {},
        _series(path / METRICS),
        _picture(path / PICTURE),
        _json(path / VERSIONS),
    )


def flattened(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every finite value by its tag; the last line of a run that goes on may be cut."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
            step = min(int(values.pop("step")), 10**15)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
        for tag, value in values.items():
            if isinstance(value, (int, float)) and abs(value) < 1e300:
                kind, slash, name = tag.partition("/")
                found.setdefault(EARLIER.get(kind + slash, kind + slash) + name, []).append(
                    (step, float(value))
                )
    return found


def _picture(path: Path) -> bytes | None:
    if not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
        return None
    content = path.read_bytes()
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") else None


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by everything that they were asked but their seed, in the order of the first of each."""
    groups: dict[str, Group] = {}
    for run in runs:
        asked = _asked(run.settings)
        key = json.dumps(asked, sort_keys=True, default=str)
        groups.setdefault(key, Group("", asked, [])).runs.append(run)
    for group in groups.values():
        group.runs.sort(key=lambda run: str(run.settings.get("seed")))
    found = list(groups.values())
    for group, name in zip(found, _names([group.settings for group in found]), strict=True):
        group.name = name
    return found


def _asked(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the seed, and without what changes nothing that is computed."""
    left_out = {"seed", *NOT_IDENTITY}
    if settings.get("budget") is not None:
        left_out.add("steps")  # which follow from it, and from the machine
    return {k: v for k, v in settings.items() if k not in left_out}


def _names(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The method of each, and as many settings more as tell it from the others of that method."""
    methods = [str(s.get("choices.method")) for s in settings]
    names = list(methods)
    for i, own in enumerate(settings):
        others = [s for s, m in zip(settings, methods, strict=True) if m == methods[i] and s != own]
        keys = sorted(own, key=lambda key: not key.startswith("choices."))
        for key in keys[: len(keys) if others else 0]:
            apart = [s for s in others if s.get(key) != own[key]]
            if apart and len(names[i]) < 60:
                names[i] += f", {key.removeprefix('choices.')}={own[key]}"
                others = [s for s in others if s not in apart]
    twice = {name for name in names if names.count(name) > 1}
    return [f"{name} ({i + 1})" if name in twice else name for i, name in enumerate(names)]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories", metavar="RUNS")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page")
    given = parser.parse_args(arguments)
    try:
        _check_free(given.out)
        paths, mistakes = find(given.runs)
        for mistake in mistakes:
            print(f"error: {mistake}", file=sys.stderr)
        if not paths:
            return 1
        groups = grouped([read(path) for path in paths])
        write_whole(given.out, page(groups))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(paths)} runs in {len(groups)} groups: {given.out}")
    return 1 if mistakes else 0


def _check_free(out: Path) -> None:
    """A report gives way to the next one, and nothing else does."""
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"{out} is no name for a file here: give another to --out")
    if out.is_symlink() or (out.exists() and not out.read_bytes().startswith(MARK.encode())):
        raise ValueError(f"{out} is no report of this program, and stays: give another to --out")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
