"""Every method and loss on signals and vectors: it works, or refuses in a line that helps.

docs/modalities.yaml records which; docs/methods.md shows it. `python -m tests.test_modalities`
writes it anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from core.runtime import Runtime
from engine.catalogue import losses, methods
from engine.config import compose, plain
from engine.networks import build_network
from engine.parts import build_dataset
from engine.teacher_file import load_teacher
from tests.modalities import DATA, RECORD, recorded, refusal

METHODS = [name for name, _, _ in methods()]
LOSSES = [loss.name for loss in losses()]
HELP = "it has|choose|leave|name|pass|set|pad|needs|give|use|make"  # what to do


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_works_or_refuses(method: str, kind: str) -> None:
    _check(refusal(kind, f"method={method}"), kind in recorded()["methods"][method])


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_works_or_refuses(loss: str, kind: str) -> None:
    reason = refusal(kind, "method=kd", f"loss={loss}")
    _check(reason, kind in recorded()["losses"][loss])


def test_the_record_is_complete() -> None:
    assert list(recorded()["methods"]) == METHODS
    assert list(recorded()["losses"]) == LOSSES


def test_a_plain_checkpoint_of_a_teacher_of_signals(tmp_path: Path) -> None:
    """Nothing says its range: it is that of signals, and not 0..1."""
    arguments = [*DATA["signal"], "device=cpu", "teacher.mean=[0]", "teacher.std=[0.3]"]
    config = plain(compose(arguments))
    dataset = build_dataset(config, Runtime("cpu"))
    path = str(tmp_path / "teacher.pth")
    network = build_network(config["teacher"]["model"], dataset.shape, dataset.classes)
    torch.save(network.state_dict(), path)
    config["teacher"]["checkpoint"] = path
    teacher = load_teacher(config, path, dataset, Runtime("cpu"))
    assert (teacher.spec.range, teacher.spec.rate) == ((-1.0, 1.0), 8000)
    assert dataset.range == (-1.0, 1.0)
    config["teacher"] |= {"range": [0.0, 1.0], "mean": [0.5]}
    assert load_teacher(config, path, dataset, Runtime("cpu")).spec.range == (0.0, 1.0)


def _check(reason: str, known: bool) -> None:
    assert known == (not reason), reason or "it works now: write the record anew"
    if reason:
        assert any(word in reason for word in HELP.split("|")), reason


if __name__ == "__main__":
    found = {
        "methods": {m: [k for k in DATA if not refusal(k, f"method={m}")] for m in METHODS},
        "losses": {
            n: [k for k in DATA if not refusal(k, "method=kd", f"loss={n}")] for n in LOSSES
        },
    }
    RECORD.write_text(yaml.safe_dump(found, sort_keys=False, default_flow_style=None))
