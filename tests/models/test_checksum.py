"""Equal networks make equal files, which any reader of safetensors understands."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from data.spec import InputSpec
from models.checksum import KEY, check, with_checksum
from models.classifier import Classifier
from models.digits import DigitsCNN
from models.pretrained import save_network


def test_files_of_equal_networks_are_equal(tmp_path: Path) -> None:
    spec = InputSpec((1, 8, 8), (0.0, 1.0), (0.3,), (0.4,))
    files = [tmp_path / f"{i}.safetensors" for i in range(8)]
    module = DigitsCNN(1, 3, 4)
    for i, file in enumerate(files):
        classes = ("ä", "b", "c")
        save_network(file, Classifier(module, spec, classes), {"architecture": "x", "more": "y"})
        assert file.read_bytes() == files[0].read_bytes(), i
    content = files[0].read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert list(header) == sorted(header)
    loaded = load_file(files[0])
    assert all(torch.equal(loaded[k], v) for k, v in module.state_dict().items())
    with safe_open(files[0], "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["ä", "b", "c"]


def test_whatever_changes_the_metadata_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    content = b"".join(with_checksum(save({"x": torch.arange(3.0)}, {"mean": "0.3", "std": "0.4"})))
    file.write_bytes(content)
    check(file)
    for old, new in ((b"0.3", b"0.2"), (b'"x"', b'"y"'), (b"F32", b"I32"), (b"[3]", b"[1]")):
        file.write_bytes(content.replace(old, new))
        with pytest.raises(ValueError, match=f"{file} is damaged.*{KEY}"):
            check(file)
    file.write_bytes(save({"x": torch.arange(3.0)}, {"mean": "0.3"}))
    check(file)  # of others
