"""Students and teachers that see an input through a transform."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from core.runtime import Runtime
from data.builtin import digits
from data.transforms import FourierMagnitude
from engine import moments
from engine.config import compose, plain
from engine.evaluate import Evaluator
from engine.parts import build_dataset
from engine.student import student_of
from engine.teacher_file import load_teacher
from engine.train import run
from tests.schemes import FOURIER, run_config

TEACHER = FOURIER.replace("student.", "teacher.")
PROBE = {  # as short as can be
    "deep_inversion": ["synthesizer.iterations=2", "steps=1"],
    "dafl": ["generator=small", "batch_size=16", "source.student_steps=1", "steps=2"],
}


def config(folder: Path, method: str, *overrides: str) -> DictConfig:
    more = ["steps=4", "evaluations=1", f"run_root={folder}", f"run_dir={folder / 'run'}"]
    made = run_config(method, folder, *more, *overrides)
    made.student.mean = made.student.std = None
    return made


def test_moments_are_those_of_training_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(config(tmp_path, "kd", "source.limit=30"), Runtime("cpu"))
    student = student_of(tmp_path / "run")
    assert isinstance(student.transform, FourierMagnitude)
    data = digits(Runtime("cpu"))
    with torch.no_grad():
        seen = student.transform(data.open("train").batch(slice(0, 1437))[0])
    assert student.spec.mean[0] == pytest.approx(seen.mean().item(), abs=0.02)
    assert student.spec.std[0] == pytest.approx(seen.std().item(), abs=0.02)
    assert "measured on 30 training inputs" in capsys.readouterr().out
    again = Evaluator(student, None, data.open("test"), Runtime("cpu"))()
    assert again["accuracy"] == pytest.approx(result["student"]["accuracy"])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "`x` is what the student's transform makes of an input; an export contains it" in card


def test_a_file_of_a_network_behind_a_transform(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a teacher without it, a line says so; with it, what was shown has to be what is shown."""
    run(config(tmp_path, "kd", "student.transform=edges", "source.limit=30"), Runtime("cpu"))
    file = str(tmp_path / "run" / "student.safetensors")
    overrides = ["teacher=digits_cnn_small", "teacher.model.width=4", f"teacher.checkpoint={file}"]
    cpu = Runtime("cpu")
    data = digits(cpu)
    capsys.readouterr()
    load_teacher(plain(compose(overrides)), file, data, cpu)
    assert "of a network that saw images [1, 8, 8] through a transform" in capsys.readouterr().out
    overrides += ["teacher.transform=edges"]
    assert load_teacher(plain(compose(overrides)), file, data, cpu).transform
    assert not capsys.readouterr().out
    larger = plain(compose([*overrides, "data.size=9"]))
    with pytest.raises(ValueError, match=r"inputs of shape \(1, 8, 8\), but .* data\.size=8"):
        load_teacher(larger, file, build_dataset(larger, cpu), cpu)


@pytest.mark.parametrize(("rows", "looked_at"), [(30, 30), (50_000, 2048)])
def test_inputs_from_all_over_a_split_are_looked_at(rows: int, looked_at: int) -> None:
    """Its rows may be sorted by class."""

    class Sorted:
        def __len__(self) -> int:
            return rows

        def batch(self, index: torch.Tensor) -> tuple[torch.Tensor]:
            return (index,)

    found = moments._some(Sorted())
    assert (len(found), found[0], found[-1]) == (looked_at, 0, rows - 1)
    assert found.diff().min() >= rows // looked_at
    assert found.diff().max() <= rows // looked_at + 1


def test_without_data_they_are_those_of_synthesized_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run_config("dfad", tmp_path, FOURIER, "steps=2", f"run_root={tmp_path}")
    made.probe = {"size": 16, "methods": PROBE}
    result = run(made, Runtime("cpu"))
    assert "measured on 32 synthesized inputs" in capsys.readouterr().out
    assert result["cost"]["real_training_inputs_read"] == 0


def test_what_goes_into_a_teachers_transform_is_unknown_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [TEACHER, "steps=2", f"run_root={tmp_path}", "data.training.steps=2", "data.size=8"]
    more += [f"run_dir={tmp_path / 'run'}"]
    made = run_config("dfad", tmp_path, *more)
    made.student.transform, made.student.mean, made.student.std = None, None, None
    made.teacher.checkpoint = None
    result = run(made, Runtime("cpu"))
    assert "those of uniform noise are taken, 0.5 and 0.289" in capsys.readouterr().out
    assert result["cost"]["real_training_inputs_read"] == 0
    assert student_of(tmp_path / "run").spec.mean == (0.5,)


@pytest.mark.parametrize("both", [False, True])
def test_a_student_of_images_learns_from_synthesized_signals(tmp_path: Path, both: bool) -> None:
    """What is synthesized to measure moments is shown to a student as it is to the teacher."""
    words = ["data=two_tones", "method=dfad", "student.transform=log_mel"]
    words += ["teacher=digits_cnn", "teacher.transform=log_mel"] if both else []
    words += ["student=digits_cnn_small", "generator.channels=8"]
    words += ["data.dataset.count=40", "data.training.steps=2", "data.training.batch_size=8"]
    words += ["steps=2", "batch_size=8", "device=cpu", "evaluations=1", f"run_root={tmp_path}"]
    made = compose(words)
    made.probe = {"size": 16, "methods": PROBE}
    result = run(made, Runtime("cpu"))
    assert result["cost"]["real_training_inputs_read"] == 0


def test_what_to_do_where_nothing_can_be_synthesized_to_measure_them(tmp_path: Path) -> None:
    made = run_config("dfad", tmp_path, FOURIER, "steps=2", f"run_root={tmp_path}")
    made.probe = {"size": 16, "methods": {"deep_inversion": PROBE["deep_inversion"]}}
    message = r"what student\.transform gives are measured .*: set student\.mean=\[\.\.\.\] student"
    with pytest.raises(ValueError, match=message):
        run(made, Runtime("cpu"))


def test_a_teacher_may_see_another_modality(tmp_path: Path) -> None:
    more = [TEACHER, "steps=2", f"run_dir={tmp_path / 'run'}", "data.training.steps=4"]
    made = run_config("kd", tmp_path, *more, f"run_root={tmp_path}")
    made.student.transform, made.student.mean, made.student.std = None, None, None
    made.teacher.checkpoint = None  # trained for the run, through the same transform
    run(made, Runtime("cpu"))
    [path] = tmp_path.glob("digits-scratch*/config.yaml")
    assert "FourierMagnitude" in path.read_text()
    result = json.loads((path.parent / "result.json").read_text())
    mine = json.loads((tmp_path / "run" / "result.json").read_text())
    assert mine["teacher"]["accuracy"] == pytest.approx(result["student"]["accuracy"])


def test_a_teacher_of_a_library_that_is_trained_here_expects_what_its_data_has(
    tmp_path: Path,
) -> None:
    """Its library's mean and std are those of photographs in colour."""
    made = compose(["method=kd", "teacher=vit_digits", "steps=1", "batch_size=8", "evaluations=1"])
    made.teacher.model._training_.steps = 1
    made.run_root, made.run_dir = str(tmp_path), str(tmp_path / "run")
    assert run(made, Runtime("cpu"))["status"] == "finished"
