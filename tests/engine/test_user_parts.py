"""What a user's folder may hold, what in it is refused, and what its choices are called."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import train
from core.git import commit_of
from core.runtime import Runtime
from engine.choices import ROOT, groups, written
from engine.command import overrides_of
from engine.config import ConfigError, compose, plain
from engine.identity import identity
from engine.run import RunDirectory
from engine.teacher import teacher_config
from engine.trust import read_found, sort_trust
from engine.usage import usage
from engine.versions import changes, versions
from tests.user_parts import forgotten, written_parts

CHOSEN = ["data=stripes", "student=tiny", "method=calm", "loss=hint"]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Path]:
    """The folder that the page describes."""
    with forgotten(written_parts(tmp_path / "parts")) as folder:
        yield folder


@pytest.fixture
def said(parts: Path) -> Callable[..., list[str]]:
    """The lines of a composition that is refused."""

    def said(*arguments: str) -> list[str]:
        with pytest.raises(ValueError, match=r"\S") as caught:
            compose([f"config_path={parts}", *arguments])
        return str(caught.value).splitlines()

    return said


def test_names_stand_beside_ours(parts: Path) -> None:
    config = compose([f"config_path={parts}", *CHOSEN, "teacher=lenet5"])
    found = plain(config)["choices"]
    assert [found[name] for name in ("data", "student", "method")] == ["stripes", "tiny", "calm"]
    assert list(config.distiller.losses) == ["kd", "hint"]
    assert config.distiller.losses.kd.loss.temperature == 4
    assert config.synthesis == compose(["method=dfq"]).synthesis  # which calm starts from
    assert config.choices.teacher == "lenet5"
    path = RunDirectory(config, Runtime("cpu")).path
    assert path.name.startswith("stripes-calm-lenet5-tiny-seed0-")
    config = compose(
        [f"config_path={parts}", "loss=[at,hint]", "student=tiny", "+student.model.width=9"]
    )
    assert list(config.distiller.losses)[-2:] == ["at", "hint"]
    assert config.choices.student == "tiny(width=9)"
    assert sys.path[-1] == str(parts.resolve())
    assert "stripes" not in groups()["data"]
    with pytest.raises(ConfigError, match="no 'stripes'"):
        compose(["data=stripes"])


def test_other_networks_are_named_too(parts: Path) -> None:
    config = compose([f"config_path={parts}", "method=dml", "students.peer.model=tiny"])
    assert config.students.peer.model == written("model", "tiny", parts)


def test_everything_is_reported_at_once(
    said: Callable[..., list[str]], parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "data" / "digits.yaml").write_text("steps: 3\n")
    (parts / "torch.py").write_text("")
    lines = said("sede=1", "data=stripe", "loss=[hnt]")
    assert len(lines) == 5, lines
    theirs, ours = (root / "data" / "digits.yaml" for root in (parts, ROOT))
    assert lines[0] == f"{theirs} has the name of {ours}: rename it"
    assert "did you mean 'stripes'?" in lines[2]
    assert "did you mean 'hint'?" in lines[3]
    assert train.main([f"config_path={parts}", "sede=1"]) == 1
    assert capsys.readouterr().err.count("\n") == 3


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("torch.py", "torch.py has the name of the module torch in"),
        ("json.py", "json.py has the name of Python's own json"),
        ("train.py", "train.py has the name of train of this project"),
        ("tests/mine.py", "tests has the name of tests of this project"),
        ("data/mine.py", "data has the name of data of this project, .*or move its modules out"),
        ("numpy/__init__.py", "numpy has the name of the module numpy in"),
        ("train.yaml", "train.yaml has the name of .*configs/train.yaml"),
        ("method/kd.yaml", "method/kd.yaml has the name of .*configs/method/kd.yaml"),
        ("model/mine.yml", "mine.yml cannot be chosen"),
        ("model/a b.yaml", "a b.yaml cannot be chosen"),
        ("model/null.yaml", "null.yaml cannot be chosen"),
        ("loss/mine.yaml", "mine.yaml is not YAML"),
    ],
)
def test_what_cannot_be_meant_so(
    file: str, reason: str, said: Callable[..., list[str]], parts: Path
) -> None:
    (parts / file).parent.mkdir(exist_ok=True)
    (parts / file).write_text("a: [1\n")
    [line] = said()
    assert re.search(reason, line), line
    assert "rename it" in line or "YAML" in line


@pytest.mark.parametrize("file", ["sound/net.py", "my-script.py", "docs/conf.py", "loss/more.py"])
def test_what_hides_nothing(file: str, parts: Path) -> None:
    (parts / file).parent.mkdir(exist_ok=True)
    (parts / file).write_text("")
    compose([f"config_path={parts}"])
    compose([f"config_path={parts}"])  # when it is on the path


def test_a_folder_that_is_on_the_path_already(
    said: Callable[..., list[str]], parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (parts / "sound.py", tmp_path / "others" / "sound.py"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
        monkeypatch.syspath_prepend(file.parent)
    monkeypatch.syspath_prepend(parts)
    [line] = said()
    assert f"sound.py has the name of the module sound in {tmp_path / 'others'}" in line


def test_folders_that_are_none(tmp_path: Path, said: Callable[..., list[str]]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty" / "models").mkdir(parents=True)
    (tmp_path / "empty" / "models" / "x.yaml").write_text("a: 1\n")
    for text, reason in (
        (tmp_path / "nowhere", "does not exist: give a folder that holds data/"),
        (tmp_path / "file", "is a file: give the folder that holds data/"),
        (tmp_path / "empty", "put YAML files into data/.* below it; models/ is called model/"),
        (ROOT, "is this project's own folder: leave it out"),
        ("", "the path is empty"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            compose([f"config_path={text}", "data=mine"])
        assert "\n" not in str(caught.value)
    [line] = said(f"config_path={tmp_path}")
    assert "is given twice" in line
    assert compose(["config_path=null"]) == compose([])


def test_files_that_do_not_say_where_they_belong(
    said: Callable[..., list[str]], parts: Path
) -> None:
    (parts / "method" / "bare.yaml").write_text("defaults: [dfq, _self_]\nsteps: 4\n")
    (parts / "loss" / "bare.yaml").write_text("bare: {loss: {_target_: hint.Hint}}\n")
    first = "its first line has to be # @package"
    assert said("method=bare") == [f"{parts}/method/bare.yaml: {first} _global_"]
    assert said("loss=[at,bare]") == [f"{parts}/loss/bare.yaml: {first} distiller.losses"]
    (parts / "experiment").mkdir()
    (parts / "experiment" / "mine.yaml").write_text("# @package _global_\nconfig_path: elsewhere\n")
    assert "from the command line alone" in said("experiment=mine")[0]
    (parts / "model" / "loop.yaml").write_text("defaults: [loop]\n")
    assert "starts from itself" in said("student=loop")[0]


def test_a_short_data_set_gets_the_defaults(parts: Path) -> None:
    (parts / "data" / "short.yaml").write_text(
        "root: ???\nsteps: 5\ndataset: {_target_: stripes.stripes}\n"
        "training: {steps: 1, batch_size: 2, lr: 0.1, weight_decay: 0.0}\n"
    )
    data = compose([f"config_path={parts}", "data=short", "method=kd", "data.root=x"]).data
    assert (data.val_fraction, data.path, data.root) == (0.0, None, "x")
    assert data.training.augment == []
    with pytest.raises(ConfigError, match=r"data\.root is not set and has no default"):
        compose([f"config_path={parts}", "data=short"])


def test_where_the_folder_lies_is_no_part_of_a_run(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(parts)
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    spelt = [str(parts), "parts", "./parts/", "link", "parts/../parts"]
    configs = [compose([f"config_path={text}", *CHOSEN]) for text in spelt]
    assert [config.config_path for config in configs] == spelt
    assert len({RunDirectory(config, Runtime("cpu")).path for config in configs}) == 1
    teachers = [teacher_config(config) for config in configs]
    assert len({RunDirectory(config, Runtime("cpu")).path for config in teachers}) == 1
    assert sys.path == [*before, str(parts.resolve())]


@pytest.mark.parametrize("name", ["a b,c", "it's", 'say "x"', "a=b{c}", "a\\", "é(1)#$x"])
def test_the_command_of_a_run_names_the_folder(name: str, tmp_path: Path) -> None:
    with forgotten(written_parts(tmp_path / name)) as folder:
        config = plain(compose([f"config_path={folder}", *CHOSEN, "seed=3"]))
        overrides = overrides_of(config)
        assert overrides[0] == f"config_path={folder}"
        assert {*CHOSEN[:3], "loss=[hint]", "seed=3"} <= {*overrides}
        assert identity(plain(compose(overrides))) == identity(config)


def test_help(parts: Path) -> None:
    own = f"config_path={parts}"
    assert "yours: stripes\n" in usage([own])
    assert "yours" not in usage()
    assert re.search(r"calm +DFQ with a softer teacher", usage(["method", own]))
    assert "hint           weight 1; Romero et al." in usage([own, "loss"])
    (parts / "loss" / "odd.yaml").write_text("# Odd one\nodd: 3\n")
    assert "  odd            Odd one" in usage(["loss", own])
    (parts / "torch.py").write_text("")
    with pytest.raises(ValueError, match="rename it"):
        usage([own])


def test_a_run_directory_does_not_trust_itself(parts: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"choices: {{}}\nconfig_path: {parts}\nx: {{_target_: tiny.Tiny}}\n")
    with pytest.raises(ValueError, match=r"add trust=\[tiny\] or config_path=DIR") as caught:
        read_found(file)
    assert "\n" not in str(caught.value)
    assert "tiny" not in sys.modules
    trusted, words = sort_trust(["student=tiny", f"config_path={parts}", "trust=[a.b,c]"])
    assert sorted(trusted) == ["a", "c", "hint", "stripes", "tiny"]
    assert words == ["student=tiny", f"config_path={parts}"]
    assert read_found(file, trusted)
    file.write_text("choices: {}\nx: {_target_: nowhere.Net}\n")
    with pytest.raises(ValueError, match=r"cannot import nowhere.Net; .*config_path=DIR"):
        read_found(file, ["nowhere"])


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_the_commit_of_the_folder(parts: Path) -> None:
    assert "config_path_commit" not in versions(parts)
    assert versions().keys() >= {"torch", "python", "threads"}
    git(parts, "init", "-q")
    assert "config_path_commit" not in versions(parts)  # nothing is committed
    git(parts, "add", ".")
    git(parts, "commit", "-qm", "first")
    first = versions(parts)
    assert first["config_path_commit"] == commit_of(parts)
    (parts / "runs").mkdir()
    (parts / "runs" / "config.yaml").write_text("a run's")
    assert versions(parts) == first
    dirty = f"{first['config_path_commit']}-dirty"
    for file in (parts / "model" / "new.yaml", parts / "new.py"):
        file.write_text("")
        assert versions(parts)["config_path_commit"] == dirty
        file.unlink()
    (parts / "tiny.py").write_text("")
    now = versions(parts)
    assert now["config_path_commit"] == dirty
    assert changes(first, first) is None
    assert changes({"torch": first["torch"]}, now) is None  # from before commits were recorded
    line = changes(first, now)
    assert line is not None
    assert f"config path commit {dirty[:7]}, now {dirty}" in line
    assert "torch" not in line


def test_another_commit_is_told_and_not_refused(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(parts, "init", "-q")
    git(parts, "add", ".")
    git(parts, "commit", "-qm", "first")
    config = compose([f"config_path={parts}", *CHOSEN, f"run_dir={tmp_path / 'run'}"])
    for told in (0, 1):
        directory = RunDirectory(config, Runtime("cpu"))
        with directory.claimed():
            directory.begin()
        assert capsys.readouterr().out.count("since this run began") == told
        (parts / "tiny.py").write_text("# another\n")
