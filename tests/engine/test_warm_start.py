"""Students that begin with a file's weights, or as a copy of the teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from core.runtime import Runtime
from data.builtin import digits
from engine.config import ConfigError, compose, plain
from engine.moments import measure_moments
from engine.parts import Parts, build_parts
from engine.student import student_of
from engine.teacher_file import load_teacher
from engine.train import run
from engine.versions import files_read
from engine.warm_start import files_of, first_moments
from models.checkpoint import save_network
from models.classifier import Classifier
from tests.schemes import run_config

CPU = Runtime("cpu")
MEAN = "student.mean=[0.25]"
SHORT = ["steps=2", "evaluations=1"]


def ran(folder: Path, method: str, *overrides: str) -> Path:
    """The directory of a short run."""
    directory = folder / "-".join(["run", *map(str, range(len(list(folder.iterdir()))))])
    more = [*SHORT, f"run_root={folder}", f"run_dir={directory}", *overrides]
    run(run_config(method, folder, *more), CPU)
    return directory


def parts_with(teacher_file: Path, method: str, *overrides: str) -> Parts:
    """What a run is made of, with digits_cnn_small as teacher and student."""
    networks = ["teacher=digits_cnn_small", "student=digits_cnn_small"]
    narrow = ["teacher.model.width=4", "student.model.width=4"]
    words = [f"method={method}", *networks, *narrow, f"teacher.checkpoint={teacher_file}"]
    settings = plain(compose([*words, *overrides]))
    data = digits(CPU)
    needed = settings["needs_teacher"]
    teacher = load_teacher(settings, str(teacher_file), data, CPU) if needed else None
    return build_parts(settings, data, teacher, CPU)


def same(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("plain"), "scratch") / "student.safetensors"


@pytest.fixture(scope="module")
def edges_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edges")
    return ran(folder, "scratch", "student.transform=edges") / "student.safetensors"


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("wide"), "scratch", "data.size=9") / "student.safetensors"


def test_a_student_begins_with_the_weights_of_a_file(plain_file: Path) -> None:
    started = parts_with(plain_file, "kd", f"student.checkpoint={plain_file}")
    assert same(started.student.module, student_of(plain_file.parent).module)
    assert f"student: begins with {plain_file}" in started.notes
    assert not same(parts_with(plain_file, "kd").student.module, started.student.module)


def test_with_the_normalisation_of_the_file(edges_file: Path, plain_file: Path) -> None:
    """Which its weights go with; what the user gives goes first."""
    begins = ["student.transform=edges", f"student.checkpoint={edges_file}"]
    file = student_of(edges_file.parent)
    assert parts_with(plain_file, "kd", *begins).student.spec == file.spec
    given = parts_with(plain_file, "kd", *begins, MEAN)
    assert (given.student.spec.mean, given.student.spec.std) == ((0.25,), file.spec.std)


def test_what_a_student_is_shown_may_be_given_without_a_transform(plain_file: Path) -> None:
    found = parts_with(plain_file, "kd", "student.mean=[0.25]", "student.std=[2]").student
    assert (found.spec.mean, found.spec.std) == ((0.25,), (2.0,))


def test_a_copy_of_the_teacher(plain_file: Path) -> None:
    parts = parts_with(plain_file, "kd", "student.checkpoint=teacher")
    assert parts.teacher
    assert same(parts.student.module, parts.teacher.module)
    assert "student: begins as a copy of the teacher" in parts.notes
    assert all(p.requires_grad for p in parts.student.parameters())
    with torch.no_grad():
        next(parts.student.parameters()).add_(1)
    assert same(parts.teacher.module, student_of(plain_file.parent).module)


def test_a_copy_that_is_shown_something_else_has_its_own_moments(plain_file: Path) -> None:
    """Edges are as large as the images that the teacher sees, and darker."""
    words = ["method=kd", "student.transform=edges", "student.checkpoint=teacher"]
    node, teacher = plain(compose(words))["student"], student_of(plain_file.parent)
    assert first_moments(node, teacher, {"transform": None}) == ({}, "")
    spelled = node["transform"] | {"smooth": 0.01}  # as its default is
    known = first_moments(node, teacher, {"transform": spelled})[0]
    assert known == {"mean": teacher.spec.mean, "std": teacher.spec.std}


def test_the_peer_of_c2kd_begins_as_the_teacher(plain_file: Path, edges_file: Path) -> None:
    parts = parts_with(plain_file, "c2kd")
    assert parts.teacher
    assert same(parts.networks["peer"].module, parts.teacher.module)
    assert not same(parts.student.module, parts.teacher.module)
    behind = parts_with(edges_file, "c2kd", "teacher.transform=edges")
    assert behind.networks["peer"].spec == student_of(edges_file.parent).spec
    scratch = ["students.peer.checkpoint=null"]
    idle = "teacher: no loss asks it, and it is only compared with; needs_teacher=false saves it"
    assert idle in parts_with(plain_file, "c2kd", *scratch).notes
    assert idle not in parts.notes
    scratch += ["needs_teacher=false", "teacher.checkpoint=null"]
    assert parts_with(plain_file, "c2kd", *scratch).teacher is None


def test_a_peer_without_a_teacher_begins_with_the_teachers_file(plain_file: Path) -> None:
    """``teacher.checkpoint`` is refused where nobody reads it; a peer may."""
    begins = [f"students.peer.checkpoint={plain_file}", "students.peer.model.width=4"]
    parts = parts_with(plain_file, "mutual_crossmodal", *begins)
    assert parts.teacher is None
    assert same(parts.networks["peer"].module, student_of(plain_file.parent).module)


def test_a_peer_that_lacks_keys(edges_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That of ``dml`` has no transform: its file is read, and a line says that its network had."""
    begins = [f"students.peer.checkpoint={edges_file}", "teacher.checkpoint=null"]
    parts_with(edges_file, "dml", *begins)
    assert "without students.peer.transform=... it is shown the data" in capsys.readouterr().out


def test_a_run_goes_on_from_a_finished_one(plain_file: Path, tmp_path: Path) -> None:
    """With a rate of 0 it ends where it began, and says where that was."""
    still = ["student.model.width=4", "optimizer.lr=0", f"student.checkpoint={plain_file}"]
    directory = ran(tmp_path, "scratch", *still)
    first, then = student_of(plain_file.parent).module, student_of(directory).module
    names = [n for n, _ in first.named_parameters()]
    assert all(torch.equal(first.get_parameter(n), then.get_parameter(n)) for n in names)
    assert json.loads((directory / "versions.json").read_text())["student.checkpoint"]


def test_the_card_says_what_a_student_began_with(tmp_path: Path) -> None:
    still = ["student=digits_cnn", "student.model.width=8", "teacher.model.width=8"]
    still += ["student.transform=null"]
    directory = ran(tmp_path, "kd", *still, "student.checkpoint=teacher")
    assert ", began as a copy of the teacher |" in (directory / "README.md").read_text()


def test_one_of_its_two_moments_may_be_given(plain_file: Path, tmp_path: Path) -> None:
    """The other is measured, where a file does not say it."""
    torch.save(student_of(plain_file.parent).module.state_dict(), tmp_path / "weights.pt")
    begins = [f"student.checkpoint={tmp_path / 'weights.pt'}", "student.transform=edges"]
    settings = plain(compose(["method=kd", "student=digits_cnn_small", *begins, MEAN]))
    measure_moments(compose(["method=kd"]), settings, digits(CPU), None, CPU)
    assert settings["student"]["mean"] == [0.25]
    assert settings["student"]["std"][0] == pytest.approx(0.285, abs=0.01)


def test_a_library_says_how_its_weights_were_trained(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "downloaded.pth")
    node = {"_target_": "models.external.torchvision_model", "name": "resnet18"}
    begins = {"model": node, "checkpoint": str(tmp_path / "downloaded.pth")}
    known, library = first_moments(begins, None, {}, channels=3)
    assert (known["mean"], library) == ((0.485, 0.456, 0.406), "torchvision's resnet18")
    for other in ({"model": node}, begins | {"transform": {"_target_": "mine"}}):
        assert first_moments(other, None, {}, channels=3) == ({}, "")  # random weights go with any
    assert first_moments(begins, None, {}, channels=1) == ({}, "")


def test_files_of_students_are_hashed(plain_file: Path) -> None:
    words = [f"student.checkpoint={plain_file}", "method=c2kd"]
    assert set(files_read(plain(compose(words)))) == {"student.checkpoint"}
    same_name = ["method=kd", "teacher.checkpoint=teacher", "student.checkpoint=teacher"]
    assert set(files_of(plain(compose(same_name)))) == {"teacher.checkpoint"}


def test_one_that_says_nothing_is_normalised_as_the_data(plain_file: Path, tmp_path: Path) -> None:
    torch.save(student_of(plain_file.parent).module.state_dict(), tmp_path / "weights.pt")
    parts = parts_with(plain_file, "kd", f"student.checkpoint={tmp_path / 'weights.pt'}")
    assert "which does not say how its inputs were normalised: as those of this run" in "\n".join(
        parts.notes
    )
    assert parts.teacher
    assert parts.student.spec == parts.teacher.spec


REFUSED = {
    "another network": (["student.checkpoint={plain}", "student.model.width=6"], "does not fit"),
    "a transform it had": (
        ["student.checkpoint={edges}", "student.transform=fourier"],
        "saw its inputs through .*Edges.*give the same transform",
    ),
    "a transform it had not": (
        ["student.checkpoint={plain}", "student.transform=fourier"],
        r"network for images \[1, 8, 8\] .* the student is shown images \[1, 8, 5\]",
    ),
    "other inputs": (
        ["student.checkpoint={wide}"],
        r"the student expects inputs of shape \(1, 9, 9\), but data digits gives \(1, 8, 8\)",
    ),
    "part of no file": (["student.weights=ema"], "student.checkpoint=FILE, which is not given"),
    "part of a copy": (
        ["student.checkpoint=teacher", "student.weights=ema"],
        "student.checkpoint=FILE, which is not given",
    ),
    "moments that do not fit": (
        ["student.mean=[1, 2]"],
        "student.mean and student.std do not fit: mean and std need one value",
    ),
    "no such file": (["student.checkpoint=nowhere.pt"], "cannot read the checkpoint nowhere.pt"),
    "a copy without a teacher": (
        ["method=scratch", "student.checkpoint=teacher"],
        "student.checkpoint=teacher: this method has no teacher",
    ),
    "a copy of a black box": (
        ["method=dfme", "student.checkpoint=teacher"],
        "student.checkpoint=teacher: a black box shows no weights",
    ),
    "a copy of another network": (
        ["student.checkpoint=teacher", "student.model.width=6"],
        "student.checkpoint=teacher does not fit .*; student.checkpoint=null begins with random",
    ),
    "a branch": (["method=one", "students.second.checkpoint={plain}"], "branch.*no checkpoint"),
    "part of a branch": (["method=one", "students.second.weights=a"], "branch.*no weights"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_begin_is_refused(
    plain_file: Path, edges_file: Path, wide_file: Path, what: str
) -> None:
    words, message = REFUSED[what]
    files = {"plain": plain_file, "edges": edges_file, "wide": wide_file}
    words = [word.format(**files) for word in words]
    method = "kd" if not words[0].startswith("method=") else words.pop(0).removeprefix("method=")
    with pytest.raises((ValueError, ConfigError), match=message):
        parts_with(plain_file, method, *words)


def test_messages_name_the_students_keys(
    plain_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leave names alone: of files, and of what is in them."""
    state = student_of(plain_file.parent).module.state_dict()
    twice = {name: 2 * tensor for name, tensor in state.items()}
    file = tmp_path / "teacher.pt"
    torch.save({"teacher": state, "student": twice}, file)
    begins = f"student.checkpoint={file}"
    message = rf"{re.escape(str(file))} .* choose with student\.weights=teacher or student"
    with pytest.raises(ValueError, match=message):
        parts_with(plain_file, "kd", begins)
    chosen = parts_with(plain_file, "kd", begins, "student.weights=student").student.module
    assert all(torch.equal(twice[name], tensor) for name, tensor in chosen.state_dict().items())
    torch.save({"state_dict": state, "state_dict_ema": twice}, file)
    capsys.readouterr()
    parts_with(plain_file, "kd", begins)
    assert "for another, give student.weights=state_dict_ema" in capsys.readouterr().out


def test_a_class_in_another_place_is_refused(plain_file: Path, tmp_path: Path) -> None:
    network, data = student_of(plain_file.parent), digits(CPU)
    data.classes = tuple(f"digit {k}" for k in range(10))
    names = [data.classes[1], data.classes[0], *data.classes[2:9], "new"]
    save_network(tmp_path / "m.safetensors", Classifier(network.module, network.spec, names), {})
    words = ["method=scratch", "student=digits_cnn_small", "student.model.width=4"]
    settings = plain(compose([*words, f"student.checkpoint={tmp_path / 'm.safetensors'}"]))
    with pytest.raises(ValueError, match=r"has 'digit 1' as class 0, but .* it is class 1"):
        build_parts(settings, data, None, CPU)
