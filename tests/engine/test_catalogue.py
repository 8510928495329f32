"""The lists of methods and losses are what the configuration files say."""

from pathlib import Path

from engine.catalogue import comment, losses, methods, methods_page
from engine.choices import ROOT

DOCS = ROOT.parent / "docs"


def test_the_page_is_current() -> None:
    text = (DOCS / "methods.md").read_text()
    assert text == methods_page(), "run: python -m engine.catalogue > docs/methods.md"


def test_everything_is_listed() -> None:
    assert [t.name for t in losses()] == sorted(p.stem for p in (ROOT / "loss").glob("*.yaml"))
    assert [m[0] for m in methods()] == sorted(p.stem for p in (ROOT / "method").glob("*.yaml"))
    assert {name for name, data, _ in methods() if data == "real"} >= {"kd", "scratch"}
    assert {name for name, data, _ in methods() if data == "none"} >= {"adi", "reverie"}


def test_every_file_says_where_it_is_from() -> None:
    for group in ("method", "loss"):
        for path in (ROOT / group).glob("*.yaml"):
            assert len(comment(path)) > 8, path
    for loss in losses():
        assert len(loss.summary) > 8, loss.name


def test_weight_schedule_and_taps_are_read_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text(
        "# @package distiller.losses\n# A paper\n# of two lines\n"
        "mine:\n  weight: 2.5e+2\n  schedule: {_target_: core.schedules.until, end: 0.5}\n"
        "  taps: [stage1, {student: a, teacher: b}]\n"
        "  loss: {_target_: distillers.attention.AttentionTransfer}\n"
    )
    [loss] = losses(tmp_path)
    assert (loss.name, loss.paper) == ("mine", "A paper of two lines")
    assert (loss.weight, loss.taps) == ("250, until(end=0.5)", "stage1, a: b")
