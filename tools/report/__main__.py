"""One HTML page that compares runs: settings, curves, pictures, figures and costs.

python -m tools.report runs/*
python -m tools.report runs/dafl-* runs/dfq-* --out losses.html

RUNS are run directories, or folders that hold some. Runs that differ only in their seed make one
group, with the mean and the sample standard deviation over the seeds. The page needs no other file
and no network; no code in a run directory is run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.files import write_whole
from tools.report.page import MARK, report_page
from tools.report.runs import find, grouped, read_runs


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
        groups = grouped([read_runs(path) for path in paths])
        write_whole(given.out, report_page(groups))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(paths)} runs in {len(groups)} groups: {given.out}")
    return 1 if mistakes else 0


def _check_free(out: Path) -> None:
    """Check that the file may be written: only an earlier report is overwritten."""
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"{out} cannot be a file name here: give another to --out")
    if out.is_symlink() or (out.exists() and not out.read_bytes().startswith(MARK.encode())):
        raise ValueError(f"{out} is not a report of this program, and stays: give another to --out")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
