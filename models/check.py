"""Whether a network works, in both modes, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from models.classifier import Classifier, Outputs
from models.logits import candidates, in_words, logits_of, named_logits


def materialize(module: nn.Module, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Let lazy modules, if any, find their sizes and initialise their weights.

    Raises:
        ValueError: if the network cannot take inputs of this shape.
    """
    if _lazy(module):
        modes = {m: m.training for m in module.modules()}
        try:
            with torch.no_grad():
                module.eval()(torch.zeros(2, *shape))
        except Exception as error:
            _refuse(type(module).__name__, "eval", shape, num_classes, error)
        for m, mode in modes.items():
            m.training = mode
        if left := _lazy(module):
            raise ValueError(
                f"{type(module).__name__} has lazy layers that eval mode does not run "
                f"({', '.join(left[:3])}): give them their sizes"
            )
    return module


def _lazy(module: nn.Module) -> list[str]:
    """The names of weights and buffers that have no size yet."""
    lazy = (UninitializedParameter, UninitializedBuffer)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in tensors if isinstance(tensor, lazy)]


def check_network(classifier: Classifier, num_classes: int, training: bool = False) -> str:
    """Pass noise through a copy of a network, which stays as it was, weights shared.

    Args:
        training: whether to do so in train mode, too.

    Returns:
        A line on what the network returns in training beside its logits, or "".

    Raises:
        ValueError: if it fails or cannot be copied, the logits are not [B, num_classes], or it is
            unclear which of several tensors they are.
    """
    name, spec = classifier.name, classifier.takes
    _check_kind(classifier.module, name)
    device = next(classifier.parameters(), torch.empty(0)).device
    trial = _copy(classifier)
    with _no_trace(device):
        x = spec.noise(1, device)
        output, answer = _answer(trial.eval(), x, num_classes)
        if named_logits(output) is None and len(candidates(output, num_classes)) > 1:
            raise ValueError(
                f"{name} returns {in_words(output)}; more than one of these could be its logits: "
                "return them alone, or under the name logits"
            )
        if not training:
            return ""
        output, _ = _answer(trial.train(), spec.noise(2, device), num_classes)
        if isinstance(output, Tensor):
            return ""
        if named_logits(output) is None and len(candidates(output, num_classes)) > 1:
            _check_first(classifier.apart(), x, answer.logits, num_classes)
    return f"{name} returns {in_words(output)} in training: its logits are read, nothing else"


def _copy(classifier: Classifier) -> Classifier:
    try:
        return classifier.apart()
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"{classifier.name} cannot be copied ({_reason(error)}), which evaluation and "
            "synthesis need: keep files, locks, generators and the like out of a network's "
            "attributes"
        ) from error


def _check_kind(module: nn.Module, name: str) -> None:
    """Check that a network's layers can be read, and its state kept in a file of tensors."""
    if any(isinstance(m, torch.jit.ScriptModule) for m in module.modules()):
        raise ValueError(
            f"{name} is TorchScript, whose layers cannot be read: give the module that it was "
            "made from"
        )
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} has a {type(value).__name__} in its state ({key}), which a file of "
                "weights cannot hold: keep it in a buffer, or outside of the state"
            )


def _answer(trial: Classifier, x: Tensor, num_classes: int) -> tuple[Any, Outputs]:
    """What the network returns, and the outputs that are read from it."""
    mode = "training" if trial.training else "eval"
    seen: list[Any] = []
    hook = trial.module.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        outputs = trial(x)
    except ValueError as error:
        if trial.name in str(error) or str(error).startswith("the tap "):  # says it all
            raise
        _refuse(trial.name, mode, trial.spec.shape, num_classes, error)
    except Exception as error:
        _refuse(trial.name, mode, trial.spec.shape, num_classes, error)
    finally:
        hook.remove()
    _check_logits(trial, logits_of(seen[0], num_classes, trial.name), len(x), num_classes)
    return seen[0], outputs


def _check_logits(trial: Classifier, logits: Tensor, size: int, num_classes: int) -> None:
    name, shape = trial.name, _dims(trial.spec.shape)
    mode = " in training" if trial.training else ""
    if logits.shape != (size, num_classes):
        raise ValueError(
            f"{name} gives logits of shape {_dims(logits.shape)}{mode} for an input of shape "
            f"{shape}, but the data has {num_classes} classes: {size}x{num_classes} is needed"
        )
    if not logits.is_floating_point():
        raise ValueError(
            f"{name} gives {logits.dtype}{mode}, but logits are floating-point numbers"
        )
    if not logits.isfinite().all():
        raise ValueError(
            f"{name} gives logits{mode} that are not finite for noise in the data's range: its "
            "weights, or the mean and std of its inputs, cannot be right"
        )


def _check_first(trial: Classifier, x: Tensor, expected: Tensor, num_classes: int) -> None:
    """If a network returns a tuple of tensors in training only, the first must be the logits.

    Dropout and BatchNorm in eval mode, and only the modules around them in train mode, give the
    very logits that eval mode gives.
    """
    for m in trial.modules():
        m.training = any(True for _ in m.children())
    output, _ = _answer(trial, x, num_classes)
    found = candidates(output, num_classes)
    if not torch.allclose(found[0].to(expected), expected, rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"{trial.name} returns {in_words(output)} in training, and the first is not what "
            "it returns in eval mode: return the logits first, or under the name logits"
        )


@contextmanager
def _no_trace(device: torch.device) -> Iterator[None]:
    cuda = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(cuda):
        yield


def _refuse(
    name: str, mode: str, shape: tuple[int, ...], num_classes: int, error: Exception
) -> NoReturn:
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    where = " in training" if mode == "training" else ""
    instead = "set data.size=..., or choose" if len(shape) == 3 else "choose"
    raise ValueError(
        f"{name} cannot take inputs of shape {_dims(shape)} for {num_classes} classes{where} "
        f"({_reason(error)}): {instead} another network"
    ) from error


def _reason(error: Exception) -> str:
    """The first line of an error, with its type if the line alone would say little."""
    line = str(error).split("\n")[0][:200]
    plain = isinstance(error, (RuntimeError, ValueError)) and line
    return line if plain else f"{type(error).__name__}: {line}".removesuffix(": ")


def _dims(shape: tuple[int, ...] | torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"
