"""Files of a run that a disk, another program or its user has damaged or taken away."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from engine.checkpoints import read_checkpoint
from engine.run import RunDirectory
from models.pretrained import load_weights
from tests.engine.runs import contents, differing


@pytest.mark.parametrize("content", [b"a: [1\n", b"- 1\n", b"a: 1\n"])
def test_a_folder_is_ours_by_its_configuration(content: bytes, directory: RunDirectory) -> None:
    with directory.claimed():
        directory.begin()
    (directory.path / "config.yaml").write_bytes(content)
    before = contents(directory.path)
    for directory.overwrite in (False, True):
        with pytest.raises(ValueError, match=r"not a run directory.*its config\.yaml") as caught:
            directory._check_owner()
        assert "\n" not in str(caught.value)
    assert contents(directory.path) == before


@pytest.mark.parametrize("content", [b"", b'{"torch": "2", "python": !}', b"3"])
def test_damaged_versions_are_written_anew(content: bytes, directory: RunDirectory) -> None:
    with directory.claimed():
        directory.begin()
    directory.checkpoints.save(3, {"step": 3, "distiller": {}})
    (directory.path / "versions.json").write_bytes(content)
    with directory.claimed():
        directory.begin()
    versions = json.loads((directory.path / "versions.json").read_text())
    assert versions["torch"] == torch.__version__


@pytest.mark.parametrize("content", [b"", b"no state"])
def test_a_damaged_checkpoint_is_named(content: bytes, directory: RunDirectory) -> None:
    for step in (3, 4):
        directory.checkpoints.save(step, {"step": step, "distiller": {}})
    file = directory.path / "checkpoints" / "step-000000004" / "rank0.pt"
    file.write_bytes(content)
    before = contents(directory.path)
    with pytest.raises(ValueError, match=rf"{file} is damaged .*goes on from the beginning") as e:
        directory.load()
    assert "\n" not in str(e.value)
    assert contents(directory.path) == before
    file.unlink()  # as the message says
    assert directory.load() is None
    assert not list(file.parents[1].iterdir())


def test_no_flipped_bit_of_a_checkpoint_is_used(directory: RunDirectory) -> None:
    """Anywhere in the file: it is refused, or was in a byte that means nothing."""
    saved = {"step": 3, "distiller": {"x": torch.randn(40)}}
    directory.checkpoints.save(3, saved)
    file = directory.path / "checkpoints" / "step-000000003" / "rank0.pt"
    whole, refused = file.read_bytes(), 0
    draw = random.Random(0)
    for place in draw.sample(range(len(whole)), 300):
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        try:
            assert not differing(read_checkpoint(file), saved | {"ranks": 1})
        except ValueError as error:
            refused += str(file) in str(error)
    assert refused > 100
    at = whole.index(saved["distiller"]["x"].numpy().tobytes())  # type: ignore[index]
    file.write_bytes(whole[: at + 1] + bytes([whole[at + 1] ^ 4]) + whole[at + 2 :])
    with pytest.raises(ValueError, match="wrong checksum"):
        directory.load()
    file.write_bytes(whole[:-300])
    with pytest.raises(ValueError, match="is damaged"):
        directory.load()
    torch.save({"epoch": 3}, file)
    with pytest.raises(ValueError, match=r"is damaged \(not the state of a run\)"):
        directory.load()


def test_no_flipped_bit_of_a_network_is_used(teacher: Path, tmp_path: Path) -> None:
    file, whole = tmp_path / "a.safetensors", teacher.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    good = load_weights(teacher)
    draw = random.Random(0)
    places = draw.sample(range(header), 200) + draw.sample(range(header, len(whole)), 100)
    refused = 0
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        try:
            loaded = load_weights(file)
        except ValueError as error:
            refused += str(file) in str(error)
        else:  # a space at the header's end, or the checksum's own name
            assert not differing(loaded[0], good[0])
            assert {k: loaded[1].get(k) for k in good[1]} == good[1]
    assert refused > 250
    mean = whole.index(b'\\"mean\\": [')
    file.write_bytes(whole[: mean + 14] + b"7" + whole[mean + 15 :])
    with pytest.raises(ValueError, match="checksum is wrong"):
        load_weights(file)


def test_files_without_a_checksum_load(teacher: Path, tmp_path: Path) -> None:
    """Of others, of earlier versions, or made from one of ours."""
    tensors, metadata = load_weights(teacher)
    save_file(load_file(teacher), tmp_path / "a.safetensors")
    assert not differing(load_weights(tmp_path / "a.safetensors")[0], tensors)
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(changed, tmp_path / "b.safetensors", metadata)
    assert load_weights(tmp_path / "b.safetensors")[1] == metadata


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("student.safetensors", None),
        ("student.safetensors", b"somebody's"),
        ("student.safetensors", -1),  # its last byte is another
        ("result.json", b"{"),
        ("result.json", b'{"acc": 1}'),
        ("inputs.png", None),
    ],
)
def test_what_a_finished_run_lost_is_brought_back(
    name: str,
    content: bytes | int | None,
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    arguments = [*tiny, "method=kd", "steps=2", f"run_dir={run}"]
    assert train.main(arguments) == 0
    before, file = contents(run), run / name
    if content is None:
        file.unlink()
    elif isinstance(content, int):
        file.write_bytes(before[name][:-1] + bytes([before[name][-1] ^ 1]))
    else:
        file.write_bytes(content)
    capsys.readouterr()
    assert train.main(arguments) == 0
    said = capsys.readouterr().out
    assert re.search(rf"{file} is (missing|damaged): it is restored from .*step-000000002", said)
    after = contents(run)
    kept = after.pop(f"{name}.kept", None)
    assert kept == (content if isinstance(content, bytes) else None)
    for same in ("student.safetensors", "inputs.png", "config.yaml", "result.json"):
        if same != "result.json" or same != name:
            assert after[same] == before[same], same
    results = [json.loads(files["result.json"]) for files in (before, after)]
    assert results[0]["student"] == results[1]["student"]
    assert train.main(arguments) == 0
    assert "restored from" not in capsys.readouterr().out


def test_a_finished_run_without_student_and_checkpoint(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = [*tiny, "method=kd", "steps=1", f"run_dir={run}"]
    assert train.main(arguments) == 0
    (run / "checkpoints" / "step-000000001" / "rank0.pt").unlink()
    (run / "student.safetensors").unlink()
    before = contents(run)
    assert train.main(arguments) == 1
    assert "is missing, and no checkpoint remains" in capsys.readouterr().err
    assert contents(run) == before
