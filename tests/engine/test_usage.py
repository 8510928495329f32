"""`--help` is short, and one group of it has a line on each choice."""

import re

import pytest

import train
from engine.catalogue import losses
from engine.choices import groups
from engine.usage import WIDTH, usage


def test_the_overview_is_a_screen_and_names_every_group() -> None:
    text = usage()
    assert len(text.splitlines()) <= 45
    assert max(map(len, text.splitlines())) <= WIDTH
    for group in groups():
        assert re.search(rf"^  {group} +\w+", text, re.MULTILINE)


@pytest.mark.parametrize("group", groups())
def test_a_group_has_a_line_on_each_choice(group: str) -> None:
    text = usage([group])
    assert max(map(len, text.splitlines())) <= WIDTH
    for choice in groups()[group]:
        assert re.search(rf"^  {choice} +\S.{{8}}", text, re.MULTILINE), choice


def test_a_loss_has_its_weight_and_paper() -> None:
    for loss in losses():
        assert f"weight {loss.weight}; {loss.paper}"[:40] in usage(["loss"])


def test_keys_have_their_defaults() -> None:
    assert "budget: null         # time in place of steps" in usage(["keys"])


def test_help_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help", "method"], ["method", "-h"]):
        assert train.main(arguments) == 0
        assert capsys.readouterr().out.startswith("method=NAME\n")
    assert train.main(["--help", "metod"]) == 1
    assert "did you mean --help method?" in capsys.readouterr().err
