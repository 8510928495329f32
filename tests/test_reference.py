"""The check of reference values: what it accepts, and what it must not."""

from pathlib import Path

import numpy as np
import pytest

from tests.reference import LOSSES, check, main

FIXTURE = "fixtures/transfer_losses.npz"


def save(path: Path, arrays: dict[str, np.ndarray]) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def logits(rows: int = 5, classes: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {f"logits_{role}": rng.normal(size=(rows, classes)) for role in ("student", "teacher")}
    return {**found, "labels": rng.integers(0, classes, rows)}


def kd(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Value and gradient at τ = 4, by hand."""
    q, p = (np.exp(arrays[f"logits_{role}"] / 4) for role in ("student", "teacher"))
    q, p = (x / x.sum(1, keepdims=True) for x in (q, p))
    value = 16 * (p * np.log(p / q)).sum() / len(p)
    gradient = (4 * (q - p) / len(p)).astype(np.float32)
    return {"value/kd_t4": np.asarray(value), "grad/kd_t4/logits_student": gradient}


def test_all_reference_values(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = check(shared / FIXTURE)
    assert set(reports) == set(LOSSES)
    for name, report in reports.items():
        assert report.ok, f"{name}: {report}"
        assert report.errors.pop("value") < 1e-9, name
        assert report.errors, name
        # float32 keeps 2^-24 of each entry
        assert max(report.errors.values()) < 6e-8, name
    assert main([str(shared / FIXTURE)]) == 0
    assert f"{len(LOSSES)} of {len(LOSSES)} agree" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_wrong_value_or_gradient_of_any_loss_is_found(
    name: str, shared: Path, tmp_path: Path
) -> None:
    with np.load(shared / FIXTURE) as file:
        arrays = {k: file[k] for k in file.files if "/" not in k or k.split("/")[1] == name}
    for key in [key for key in arrays if "/" in key]:
        wrong = dict(arrays)
        wrong[key] = wrong[key] * (1 + 3e-5)
        reports = check(save(tmp_path / "wrong.npz", wrong))
        assert not reports[name].ok
        assert sum(error > 1e-5 for error in reports[name].errors.values()) == 1


def test_other_shapes_and_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = logits()
    right = {**arrays, **kd(arrays)}
    assert main([save(tmp_path / "right.npz", right)]) == 0
    assert "1 of 1 agree" in capsys.readouterr().out
    for key in ("value/kd_t4", "grad/kd_t4/logits_student"):
        wrong = dict(right)
        wrong[key] = right[key] + 1e-3
        assert main([save(tmp_path / "wrong.npz", wrong)]) == 1
        assert "FAILED kd_t4" in capsys.readouterr().out
        wrong[key] = np.full_like(right[key], np.nan)
        assert main([save(tmp_path / "nan.npz", wrong)]) == 1


def test_a_value_or_a_gradient_alone_is_checked(tmp_path: Path) -> None:
    arrays = logits()
    for key, value in kd(arrays).items():
        reports = check(save(tmp_path / "one.npz", {**arrays, key: value}))
        assert reports["kd_t4"].ok
        assert list(reports["kd_t4"].errors) == [key.split("/")[-1] if "grad" in key else "value"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "nothing was checked"),
        ({"value/kd_t3": np.asarray(1.0)}, "no loss of this name"),
        ({"value/kd_t4/x": np.asarray(1.0)}, "neither a value nor a gradient"),
        ({"value/attention_transfer_p2": np.asarray(1.0)}, "no input 'features_student_0'"),
        ({"grad/kd_t4/logits_of_none": np.zeros((5, 7))}, "no input 'logits_of_none'"),
        ({"grad/kd_t4/logits_student": np.zeros((5, 6))}, "inf"),
        ({"value/dkd_alpha1_beta8_t4": np.asarray(1.0), "labels": np.full(5, 9)}, "cannot be"),
    ],
)
def test_what_cannot_be_checked_fails(
    extra: dict[str, np.ndarray],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([save(tmp_path / "file.npz", {**logits(), **extra})]) == 1
    assert message in capsys.readouterr().out


def test_what_is_no_npz_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.npz").write_text("no")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy", "missing.npz"):
        assert main([str(tmp_path / name)]) == 1
        assert "npz" in capsys.readouterr().err
    assert main([]) == 2
