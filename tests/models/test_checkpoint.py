"""Checkpoints as the field writes them: the right weights are found, or a line says why not."""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from data.spec import InputSpec
from models.checkpoint import FORMAT, load_weights
from models.classifier import Classifier
from models.digits import DigitsCNN
from models.pretrained import check_network, load_classifier

SPEC = InputSpec((1, 8, 8), (0.0, 1.0), (0.3,), (0.4,))
State = dict[str, Tensor]


def state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    return DigitsCNN(1, 10, 4).state_dict()


def below(start: str, tensors: State) -> State:
    return {f"{start}.{k}": v for k, v in tensors.items()}


def changed(name: str, change: Any) -> State:
    tensors = state()
    return tensors | {name: change(tensors[name])}


def load(path: Path, content: Any, weights: str | None = None) -> tuple[State, str]:
    """The state of the network that a checkpoint was loaded into, and what was said of it."""
    said: list[str] = []
    torch.save(content, path / "a.pt")
    classifier = load_classifier(
        DigitsCNN(1, 10, 4), path / "a.pt", SPEC, [0.3], [0.4], weights=weights, say=said.append
    )
    return classifier.module.state_dict(), "\n".join(said)


def refusal(path: Path, content: Any, weights: str | None = None) -> str:
    with pytest.raises(ValueError, match=r"a\.pt") as error:
        load(path, content, weights)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)
    return str(error.value)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k].to(v.dtype)) for k, v in a.items())


LOADED: dict[str, tuple[Any, str]] = {
    "lightning": ({"state_dict": below("model", state())}, ""),
    "deeper": (below("model.net.module", state()), ""),
    "compiled inside": (below("module._orig_mod", state()), ""),
    "parallel part": ({k.replace("stage1.", "stage1.module."): v for k, v in state().items()}, ""),
    "averaged": (AveragedModel(DigitsCNN(1, 10, 4)).state_dict(), "ignored .* n_averaged"),
    "thop": (state() | {"stage1.total_ops": torch.zeros(1)}, "ignored .* stage1.total_ops"),
    "scalars": ({**state(), "epoch": 3}, "ignored beside the weights: epoch"),
    "ema alone": ({"model_ema": state(), "epoch": 3}, ""),
    "timm": (
        {
            "state_dict": state(),
            "state_dict_ema": state(1),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
            "args": argparse.Namespace(lr=np.float64(0.1)),
            "metric": np.float32(3),
            "random": (torch.get_rng_state(), np.random.get_state()),
        },
        "state_dict and state_dict_ema: state_dict is taken.*teacher.weights=state_dict_ema",
    ),
    "two names": (
        below("model", state()) | below("ema_model.module", state(1)),
        "model and ema_model: model is taken; .*teacher.weights=ema_model",
    ),
    "half": ({k: v.half() if v.is_floating_point() else v for k, v in state().items()}, ""),
    "double": ({k: v.double() for k, v in state().items()}, ""),  # the counter too
}


@pytest.mark.parametrize("kind", LOADED)
def test_weights_are_found(kind: str, tmp_path: Path) -> None:
    content, said = LOADED[kind]
    loaded, heard = load(tmp_path, content)
    if kind == "averaged":
        assert torch.equal(loaded["linear.weight"], content["module.linear.weight"])
    else:
        like = {k: v.half().float() if kind == "half" else v for k, v in state().items()}
        assert same(loaded, like)
    assert bool(said) == bool(heard)
    assert re.search(said, heard)


def test_another_choice(tmp_path: Path) -> None:
    both = {"state_dict": state(), "ema": {"state": state(1)}}
    assert same(load(tmp_path, both, "ema.state")[0], state(1))
    nested = {"state_dict": below("teacher", state()) | below("student", state(1))}
    assert same(load(tmp_path, nested, "student")[0], state(1))
    assert "teacher.weights=teacher or student" in refusal(tmp_path, nested)
    assert "teacher.weights=a or b" in refusal(tmp_path, {"a": state(), "b": state(1)})
    assert "holds no 'emma' (teacher.weights), but state_dict" in refusal(tmp_path, both, "emma")
    more = {"state_dict": below("model", state()) | {"loss.weight": torch.ones(3)}}
    assert "unexpected: loss.weight; teacher.weights=model leaves out" in refusal(tmp_path, more)
    assert same(load(tmp_path, more, "model")[0], state())


def cyclic(**more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {}
    content |= {"state_dict": content, "list": [content]} | more
    return content


def deep(content: Any, levels: int = 300) -> Any:
    for _ in range(levels):
        content = {"a": content}
    return content


REFUSED: dict[str, tuple[Any, str]] = {
    "cyclic": (cyclic(), "no state dict"),
    "deep": (deep(state()), "no state dict"),
    "numbers": ({0: torch.ones(3)}, "one of its tensors is called 0"),
    "mixed": (state() | {7: torch.ones(3)}, "one of its tensors is called 7"),
    "newline": (state() | {"a\nb": torch.ones(3)}, r"called 'a\\nb', which is not a name"),
    "arrays": ({k: v.numpy() for k, v in state().items()}, "no state dict"),
    "head": (state() | {"head.weight": torch.ones(3)}, "unexpected: head.weight"),
    "sparse": (changed("linear.weight", Tensor.to_sparse), r"linear.weight is sparse.*to_dense"),
    "meta": (changed("linear.weight", lambda v: v.to("meta")), "linear.weight has no values"),
    "complex": (changed("linear.weight", lambda v: v + 0j), "linear.weight holds complex64"),
    "integer": (changed("linear.weight", Tensor.char), "linear.weight holds int8 values"),
    "nan": (changed("linear.bias", lambda v: v * torch.nan), r"linear.bias is not finite .* 10 of"),
    "overflow": (changed("linear.bias", lambda v: v.double() + 1e300), "linear.bias is not finite"),
    "variance": (changed("stage1.1.running_var", torch.neg), "stage1.1.running_var is below 0"),
    "zeros": ({k: torch.zeros_like(v) for k, v in state().items()}, "all weights are 0"),
    "object": (
        {"model": state(), "x": nn.Identity()},
        "unpickling of 'torch.nn.modules.linear.Identity'.*would run code.*weights_only=False",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_networks_weights_is_named(kind: str, tmp_path: Path) -> None:
    content, said = REFUSED[kind]
    assert re.search(said, refusal(tmp_path, content))


def test_a_cycle_beside_the_weights_is_none_of_ours(tmp_path: Path) -> None:
    assert same(load(tmp_path, cyclic(model=state()))[0], state())


def test_infinity_in_a_mask_is_no_fault(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    network.register_buffer("mask", torch.full((2, 2), -torch.inf))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    load_classifier(network, tmp_path / "a.pt", SPEC, [0.3], [0.4])


def test_logits_that_are_not_finite() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.constant_(network[1].bias, torch.inf)
    with pytest.raises(ValueError, match="not finite for noise in the data's range"):
        check_network(Classifier(network, SPEC), 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input": "[" * 100_000}, "nested too deeply"),
        ({"classes": "[" * 100_000}, "nested too deeply"),
        ({"input": '{"shape": []}'}, "shape needs"),
        ({"input": '{"shape": [1, 8, 8], "mean": [77], "std": [90]}'}, "by 255"),
        ({"classes": '"abcdefghij"'}, "not a list of names"),
        ({"classes": "[1, 2]"}, "not a list of names"),
        ({"num_classes": "-1"}, "num_classes is -1"),
        ({"num_classes": "7", "classes": '["a", "b"]'}, "num_classes is 7, but classes has 2"),
        ({"classes": json.dumps(list("abcdefghji"))}, "another order .* class 8 is 'j' there"),
    ],
)
def test_metadata(change: dict[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state(), path, {"format": FORMAT, "input": json.dumps(SPEC.to_dict())} | change)
    with pytest.raises(ValueError, match=said):
        load_classifier(DigitsCNN(1, 10, 4), path, SPEC, classes="abcdefghij")


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(ValueError, match=r"a directory: name the file, such as .*w\.safet"):
        load_weights(tmp_path)
    with pytest.raises(ValueError, match="truncated"):
        load_weights(tmp_path / "w.safetensors")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            load_weights(path)
