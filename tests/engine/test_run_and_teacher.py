"""A run and the file of its teacher: replaced under its name, or about to be removed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from core.runtime import Runtime
from engine.config import compose, plain
from engine.parts import build_dataset, build_parts
from engine.teacher_file import blank_teacher, check_transform, load_teacher
from models.classifier import Classifier
from models.digits import DigitsCNN
from models.pretrained import load_classifier, save_network
from tests.engine.runs import contents


def test_another_teacher_under_the_same_name_is_noticed(
    tiny: list[str], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "teacher.safetensors"
    shutil.copy(teacher, file)
    arguments = [*tiny, f"teacher.checkpoint={file}", f"run_dir={tmp_path / 'run'}", "steps=4"]
    assert train.main(arguments) == 0
    assert train.main(arguments) == 0
    assert "other content" not in capsys.readouterr().out
    network = load_classifier(DigitsCNN(1, 10, 8), file)
    with torch.no_grad():
        next(network.module.parameters()).mul_(1.01)
    save_network(file, network, {})
    assert train.main(arguments) == 0
    assert "the file of teacher.checkpoint has other content than when" in capsys.readouterr().out
    (tmp_path / "run" / "result.json").unlink()
    assert train.main(arguments) == 0
    assert "these have changed, and so may its bits: teacher.checkpoint" in capsys.readouterr().out


def test_overwrite_keeps_a_run_whose_student_is_the_teacher(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}", "steps=4"]
    assert train.main(arguments) == 0
    first = contents(tmp_path / "run")
    file = tmp_path / "run" / "student.safetensors"
    own = ["teacher.model.width=4", "teacher=digits_cnn_small", f"teacher.checkpoint={file}"]
    assert train.main([*arguments, *own, "overwrite=true"]) == 1
    assert f"overwrite=true would remove {file}, which this run reads" in capsys.readouterr().err
    assert contents(tmp_path / "run") == first


def test_a_teachers_file_knows_its_transform_and_its_sample_rate(tmp_path: Path) -> None:
    words = ["method=kd", "device=cpu", "data=two_tones", "teacher=digits_cnn_small"]
    config = plain(compose([*words, "teacher.transform=log_mel"]))
    dataset, runtime = build_dataset(config, Runtime("cpu")), Runtime("cpu")
    network, file = blank_teacher(config, dataset), tmp_path / "t.safetensors"
    save_network(file, network, {"transform": json.dumps(config["teacher"]["transform"])})
    assert load_teacher(config, str(file), dataset, runtime).spec == network.spec
    other = plain(compose([*words, "teacher.transform=log_mel", "teacher.transform.floor=-60.0"]))
    with pytest.raises(ValueError, match=r"saw its inputs through .* give the same transform"):
        load_teacher(other, str(file), dataset, runtime)
    with pytest.raises(ValueError, match=r"saw its inputs through .* give the same transform"):
        check_transform(file, {"_target_": "data.spectrograms.LogMel", "mels": 32, "hop": 64})
    bare = {"_target_": "data.spectrograms.LogMel", "mels": 32, "window": 512, "hop": 128}
    check_transform(file, bare)  # its default is the floor that is written in the file
    save_network(file, network, {})  # from before this was written
    load_teacher(other, str(file), dataset, runtime)


def test_a_teachers_file_says_what_comes_before_its_transform(tmp_path: Path) -> None:
    """So that no data is needed to synthesize for it."""
    words = ["device=cpu", "teacher=digits_cnn_small", "teacher.transform=log_mel"]
    config = plain(compose([*words, "data=two_tones", "method=kd"]))
    network = blank_teacher(config, build_dataset(config, Runtime("cpu")))
    file = tmp_path / "t.safetensors"
    save_network(file, network, {"transform": json.dumps(config["teacher"]["transform"])})
    more = ["data=none", f"teacher.checkpoint={file}", "student=m5_tiny", "generator=small"]
    more += ["method=dfad", "generator.channels=8", "batch_size=4"]
    config = plain(compose([*words, *more]))
    dataset = build_dataset(config, Runtime("cpu"))
    assert (dataset.spec.modality, dataset.shape, dataset.rate) == ("signal", (1, 512), 8000)
    teacher = load_teacher(config, str(file), dataset, Runtime("cpu"))
    assert (teacher.spec, teacher.takes) == (network.spec, network.takes)
    parts = build_parts(config, dataset, teacher, Runtime("cpu"))
    assert parts.source.next().input.shape == (4, 1, 512)


def test_a_teacher_of_another_sample_rate_is_refused_behind_a_transform(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {"a": draw.integers(-9999, 9999, (12, 512), dtype=np.int16)}
    arrays["b"] = draw.integers(0, 256, (12, 8, 8), dtype=np.uint8)
    named = {f"{w}_inputs_{p}": x for p, x in arrays.items() for w in ("train", "test")}
    labels, data = np.arange(12) % 3, tmp_path / "x.npz"
    np.savez(data, **named, train_labels=labels, test_labels=labels, rate=8000)
    words = ["method=kd", "device=cpu", "data=npz_pairs", f"data.path={data}", "teacher=m5_tiny"]
    config = plain(compose([*words, "student=digits_cnn_small"]))
    dataset, runtime = build_dataset(config, Runtime("cpu")), Runtime("cpu")
    blank, file = blank_teacher(config, dataset), tmp_path / "t.safetensors"
    assert blank.spec.rate == 8000
    for rate in (8000.0, None, 16000.0):
        spec = dataclasses.replace(blank.spec, rate=rate)
        save_network(file, Classifier(blank.module, spec, blank.classes), {})
        if rate != 16000:
            load_teacher(config, str(file), dataset, runtime)
    with pytest.raises(ValueError, match=r"is of a network for 16000 samples .* is shown 8000"):
        load_teacher(config, str(file), dataset, runtime)


def test_a_class_in_another_place_is_refused(tiny: list[str], tmp_path: Path) -> None:
    config = plain(compose([word for word in tiny if "checkpoint" not in word]))
    dataset, file = build_dataset(config, Runtime("cpu")), str(tmp_path / "t.safetensors")
    blank = blank_teacher(config, dataset)
    names = [*dataset.classes[:3], "new", *dataset.classes[3:-1]]
    save_network(file, Classifier(blank.module, blank.spec, names), {})
    load_teacher(config, file, dataset, Runtime("cpu"))  # the data's names are mere numbers
    dataset.classes = tuple(f"digit {name}" for name in dataset.classes)
    names = [name if name == "new" else f"digit {name}" for name in names]
    save_network(file, Classifier(blank.module, blank.spec, names), {})
    with pytest.raises(ValueError, match=r"has 'digit 3' as class 4, but in .* class 3"):
        load_teacher(config, file, dataset, Runtime("cpu"))


def test_a_peer_does_not_begin_with_a_teachers_file(
    tiny: list[str], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, where in (("mutual_crossmodal", "students.peer"), ("one", "student")):
        words = [f"method={method}", "student.transform=edges", f"run_dir={tmp_path / 'run'}"]
        assert train.main([*tiny, f"teacher.checkpoint={teacher}", *words]) == 1
        error = capsys.readouterr().err
        assert f"method={method} has no teacher that was trained before" in error
        assert f"begin with it by {where}.checkpoint=FILE" in error
        assert not (tmp_path / "run").exists()


def test_data_that_changed_under_its_name_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, file = np.random.default_rng(0), tmp_path / "x.csv"
    rows = [f"{a:.3f},{b:.3f},{'ab'[int(a > b)]}" for a, b in draw.random((60, 2))]
    file.write_text("\n".join(["u,v,class", *rows]))
    words = ["data=csv", f"data.path={file}", "method=kd", "device=cpu", "steps=4", "evaluations=1"]
    words += ["data.training.steps=20", "batch_size=8", f"run_root={tmp_path / 'runs'}"]
    assert train.main(words) == 0
    file.write_text("\n".join(["u,v,class", *rows, rows[0]]))
    capsys.readouterr()
    assert train.main(words) == 0
    assert "the file of data.path has other content than when" in capsys.readouterr().out
    assert train.main([*words, "steps=5"]) == 1
    assert "was trained when the file of data.path had other" in capsys.readouterr().err
    [teacher] = (tmp_path / "runs").glob("csv-scratch-*")
    (teacher / "student.safetensors").unlink()  # or it was stopped: there is no result to take
    assert train.main([*words, "steps=5"]) == 1
    assert "was trained when the file of data.path had other" in capsys.readouterr().err
