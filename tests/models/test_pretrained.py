"""Networks in files: what is saved comes back, and every bad file is explained in a line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from data.spec import InputSpec
from models.check import check_network
from models.checkpoint import load_weights, save_network
from models.classifier import Classifier
from models.digits import DigitsCNN
from models.lenet import LeNet5
from models.pretrained import freeze, load_classifier

SPEC = InputSpec((1, 8, 8), (0.0, 1.0), (0.3,), (0.4,))
CLASSES = tuple("abcde")


def network(classes: int = 5) -> nn.Module:
    return DigitsCNN(1, classes, width=4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "teacher.safetensors"
    save_network(path, Classifier(network(), SPEC, CLASSES), {"architecture": "digits_cnn_small"})
    return path


def check_error(error: pytest.ExceptionInfo[ValueError]) -> None:
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def refuse(says: str, function: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ValueError, match=says) as error:
        function(*args, **kwargs)
    check_error(error)


def test_round_trip(tmp_path: Path) -> None:
    module = network().to(memory_format=torch.channels_last)
    original = Classifier(module, SPEC, CLASSES).train()
    original(torch.rand(4, 1, 8, 8))  # BatchNorm moves
    path = tmp_path / "teacher.safetensors"
    save_network(path, original, {"architecture": "x"})
    loaded = load_classifier(network(), path, SPEC, classes=CLASSES, taps=["stage1"])
    assert loaded.spec == SPEC
    assert loaded.classes == CLASSES
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor)
    assert [*loaded(torch.rand(2, 1, 8, 8)).features] == ["stage1"]
    assert os.listdir(tmp_path) == ["teacher.safetensors"]
    assert load_file(path)  # any safetensors reader understands it
    metadata = load_weights(path)[1]
    assert metadata["format"] == "reverie-1"
    assert metadata["architecture"] == "x"
    assert metadata["num_classes"] == "5"
    assert json.loads(metadata["input"])["range"] == [0.0, 1.0]


def test_failed_save_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refuse("cannot write .*No space left", save_network, saved, Classifier(network(), SPEC), {})
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_weights_only_checkpoint_and_wrappers(tmp_path: Path) -> None:
    state = network().state_dict()
    path = tmp_path / "a.pt"
    wrapped = {"module." + k: v for k, v in state.items()}
    compiled = {"_orig_mod." + k: v for k, v in wrapped.items()}
    other = {"epoch": 3, "lr": [0.1]}
    for content in (
        state,
        wrapped,
        compiled,
        *({name: wrapped, **other} for name in ("state_dict", "model", "net")),
        {"model_state_dict": state, **other},
        {"model": {"state_dict": state}, **other},
    ):
        for new in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=new)
            loaded, metadata = load_weights(path)
            assert not metadata
            assert [*loaded] == [*state]
            assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_specification_of_a_file_without_one(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(network().state_dict(), path, {"format": "pt"})
    for given in ({}, {"mean": [0.1]}, {"std": [0.1]}):
        refuse(r"teacher.mean=\[...\] teacher.std", load_classifier, network(), path, SPEC, **given)
    wide = InputSpec((1, 8, 8), (-1.0, 1.0), (0.0,), (1.0,))
    loaded = load_classifier(network(), path, wide, [0.1], [0.2], CLASSES)
    assert loaded.spec == InputSpec((1, 8, 8), (-1.0, 1.0), (0.1,), (0.2,))
    assert loaded.classes == CLASSES
    wrong = r"do not fit: .*one value for each of the 1"
    refuse(wrong, load_classifier, network(), path, SPEC, [0.1, 0.2], [0.2])


def test_an_override_wins_over_the_file(saved: Path) -> None:
    other = InputSpec((1, 8, 8), (-1.0, 1.0), (0.0,), (1.0,))
    assert load_classifier(network(), saved, other).spec == SPEC
    loaded = load_classifier(network(), saved, other, mean=[0.1], std=[0.2])
    assert loaded.spec == InputSpec((1, 8, 8), (0.0, 1.0), (0.1,), (0.2,))
    assert load_classifier(network(), saved, mean=[0.1]).spec.std == SPEC.std


def test_file_network_and_data_disagree(saved: Path) -> None:
    load = load_classifier
    large = InputSpec((3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    refuse("shape 1x8x8, but the data has 3x32x32", load, network(), saved, large)
    refuse("3x32x32: choose other data, or", load, network(), saved, large)
    padded = InputSpec((1, 32, 32))
    refuse("1x32x32: set data.size=8, or another", load, network(), saved, padded)
    refuse("5 classes, but the data has 10", load, network(), saved, SPEC, classes="abcdefghij")
    refuse(
        r"linear.weight \(5x8 in the file, 10x8 in the network\)", load, network(10), saved, SPEC
    )
    refuse(
        r"missing: stage1.0.bias.* and \d+ more; unexpected.*4x1x3x3 in .*'digits_cnn_small'",
        load,
        LeNet5(1, 5),
        saved,
        SPEC,
    )
    extra = nn.Sequential(network(), nn.Linear(5, 5))
    refuse("does not fit Sequential: missing: 0.stage1", load, extra, saved, SPEC)


def test_batchnorm_counter_may_be_absent_but_nothing_else(tmp_path: Path) -> None:
    state = network().state_dict()
    path = tmp_path / "a.safetensors"
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(old, path)
    load_classifier(network(), path, SPEC, [0.0], [1.0])
    old.pop("stage1.1.running_mean")
    save_file(old, path)
    refuse("missing: stage1.1.running_mean$", load_classifier, network(), path, SPEC, [0], [1])


def test_unreadable_metadata(saved: Path) -> None:
    state, metadata = load_weights(saved)
    for change in (
        {"input": "{"},
        {"input": '{"size": 3}'},
        {"input": "[1]"},
        {"num_classes": "many"},
        {"classes": "3"},
        {"input": '{"shape": [1, 8, 8], "std": [0.0]}'},
    ):
        save_file(state, saved, metadata | change)
        refuse("metadata cannot be read", load_classifier, network(), saved, SPEC)
    del metadata["input"]
    save_file(state, saved, metadata)
    refuse("metadata cannot be read", load_classifier, network(), saved, SPEC)


def test_missing_file(tmp_path: Path) -> None:
    refuse("cannot read.*No such file", load_weights, tmp_path / "no.safetensors")
    refuse("cannot read.*Is a directory", load_weights, tmp_path)


def test_truncated_at_any_length(saved: Path, tmp_path: Path) -> None:
    legacy, modern, path = tmp_path / "legacy.pt", tmp_path / "modern.pt", tmp_path / "cut"
    torch.save(network().state_dict(), modern)
    torch.save(network().state_dict(), legacy, _use_new_zipfile_serialization=False)
    for whole in (saved, modern, legacy):
        content = whole.read_bytes()
        load_weights(whole)
        for length in {0, 1, 5, 8, 9, 12, 60, 200, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:length])
            refuse("truncated|unpickling", load_weights, path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    refuse("not a checkpoint", load_weights, tmp_path / "a.npz")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    refuse("not a checkpoint.*TorchScript", load_weights, path)
    Image.new("RGB", (9, 9)).save(path, "PNG")
    refuse("is not a checkpoint", load_weights, path)
    path.write_text('{"weights": [1, 2, 3]}')
    refuse("is not a checkpoint", load_weights, path)
    for content in ({"epoch": 3}, {}, [torch.zeros(3)], torch.zeros(3), {"a": {"b": 1}}):
        torch.save(content, path)
        refuse("no state dict", load_weights, path)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_unpickling_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    path, trap = tmp_path / "a.pt", tmp_path / "ran"
    for new in (True, False):
        torch.save(
            {"state_dict": network().state_dict(), "x": Trap(trap)},
            path,
            _use_new_zipfile_serialization=new,
        )
        refuse("would run code.*safetensors", load_weights, path)
        torch.save(network(), path, _use_new_zipfile_serialization=new)
        refuse("would run code.*safetensors", load_weights, path)
    assert not trap.exists()


def test_freeze() -> None:
    classifier = freeze(Classifier(network(), SPEC))
    assert not any(p.requires_grad for p in classifier.parameters())
    assert not any(m.training for m in classifier.modules())
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    classifier(x).logits.sum().backward()
    assert x.grad.any()


def test_check_changes_nothing() -> None:
    classifier = Classifier(network(), SPEC, taps=["stage1"], statistics=True).train()
    classifier.module.stage1.eval()
    modes = [m.training for m in classifier.modules()]
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    rng = torch.get_rng_state()
    check_network(classifier, 5)
    assert [m.training for m in classifier.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    refuse("DigitsCNN gives logits of shape 1x5.*1x8x8.*10 classes", check_network, classifier, 10)
    assert [m.training for m in classifier.modules()] == modes


def test_check_explains_a_network_that_fails() -> None:
    colour = InputSpec((3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    refuse(
        "DigitsCNN cannot take inputs of shape 3x8x8 for 5 classes",
        check_network,
        Classifier(network(), colour),
        5,
    )
    small = Classifier(LeNet5(1, 5), SPEC)
    refuse(r"LeNet5 cannot take .*\): set data.size=\.\.\., or choose", check_network, small, 5)


def test_full_disk_for_real(tmp_path: Path) -> None:
    """A file size limit stands for the disk: the write itself fails half-way."""
    code = (
        "import resource, signal, torch\n"
        "from data.spec import InputSpec\n"
        "from models.classifier import Classifier\n"
        "from models.digits import DigitsCNN\n"
        "from models.checkpoint import save_network\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "spec = InputSpec((1, 8, 8))\n"
        "try:\n"
        f"    save_network({str(tmp_path / 'a.safetensors')!r},"
        " Classifier(DigitsCNN(1, 10), spec), {})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert "cannot write" in done.stdout
    assert not os.listdir(tmp_path)
