"""What a part needs is said in attributes, of which a mistyped one is an error."""

from __future__ import annotations

import sys

import pytest

from core.check import check_node
from distillers.base import TransferLoss
from distillers.step import Teacher, View
from generators.base import SynthesisLoss


@pytest.mark.parametrize("base", [TransferLoss, Teacher, View, SynthesisLoss])
def test_a_mistyped_need_is_an_error(base: type) -> None:
    with pytest.raises(TypeError, match=r"Wrong.needs_labels .* did you mean needs_label"):
        type("Wrong", (base,), {"needs_labels": True})
    type("Right", (base,), {"needs_label": True})


def test_the_error_is_what_a_user_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        """Imports ``mine`` as a file with a mistake would be imported."""

        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "mine":
                type("Loss", (TransferLoss,), {"needs_teachers": False})

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    [line] = check_node({"_target_": "mine.Loss"}, "loss")
    assert line.startswith(
        "loss._target_: cannot import 'mine.Loss': TypeError: Loss.needs_teachers"
    )
    assert "did you mean needs_teacher?" in line
