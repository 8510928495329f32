"""Finding a network's weights in a checkpoint, and checking their names, kinds and values."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Say = Callable[[str], Any]  # called with a line that the user should read

# Entries of a checkpoint with a state dict, or of a network in another; earlier names win.
USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "module")
WRAPPERS = {"module", "_orig_mod"}  # of DataParallel and AveragedModel, and of torch.compile
COUNTERS = {"n_averaged", "num_batches_tracked", "total_ops", "total_params"}  # SWA, thop
INTEGERS = {torch.uint8, torch.int64}  # a random generator's state is not a network
DEEPEST = 8  # entries within entries; no checkpoint of the field has more than three


def select(
    content: Any, path: str | os.PathLike[str], weights: str | None, say: Say
) -> dict[str, Tensor]:
    """The state dict that ``weights`` names, or the one that was probably meant.

    Args:
        content: of a checkpoint: a state dict, or mappings with state dicts in them.
        path: of the checkpoint, for messages.
        weights: an entry of the checkpoint, such as ``"state_dict_ema"``, or what the names of
            a network's tensors begin with, such as ``"teacher"``.
        say: called with a line on a choice that was made, or on what is left out.

    Raises:
        ValueError: if there is no state dict, none of that name, or no clear choice.
    """
    found = _state_dicts(content)
    if not found:
        raise ValueError(
            f"{path} holds no state dict (tensors by name), neither by itself nor in an entry"
        )
    best = _usual(found)
    if weights is not None and weights not in found:
        return _part(_tensors(found[best[0]], path, say), weights, path, [*filter(None, found)])
    if weights is None and len(best) > 1:
        raise ValueError(
            f"{path} holds several state dicts: choose with teacher.weights={_some(best, ' or ')}"
        )
    if weights is None and len(found) > 1:
        say(_choice(path, best[0], found))
    return _tensors(found[weights or best[0]], path, say)


def _part(
    state: Mapping[str, Tensor], weights: str, path: str | os.PathLike[str], entries: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors below one name of a state dict, where several networks share it."""
    start = weights + "."
    part = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    if not part:
        known = [*entries, *dict.fromkeys(k.partition(".")[0] for k in state)]
        raise ValueError(f"{path} holds no {weights!r} (teacher.weights), but {_some(known)}")
    return part


def _choice(path: str | os.PathLike[str], taken: str, found: Iterable[str]) -> str:
    others = [name for name in found if name != taken]
    return (
        f"{path} holds {taken} and {_some(others)}: {taken} is taken; "
        f"for another, give teacher.weights={others[0]}"
    )


def _state_dicts(content: Any) -> dict[str, Mapping[Any, Any]]:
    """State dicts by the dotted path of their entry; none contains another.

    No recursion: a stranger's file may nest as deeply as it likes, or hold itself.
    """
    found: dict[tuple[str, ...], Mapping[Any, Any]] = {}
    seen: set[int] = set()
    pending: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    while pending:
        entry, node = pending.popleft()
        if not isinstance(node, Mapping) or id(node) in seen or len(entry) > DEEPEST:
            continue
        seen.add(id(node))
        tensors = [v for v in node.values() if isinstance(v, Tensor)]
        if any(v.dim() and v.dtype not in INTEGERS for v in tensors):
            found[entry] = node
        pending += [((*entry, k), v) for k, v in node.items() if _is_name(k)]
    outer = {entry[:i] for entry in found for i in range(len(entry))}
    return {".".join(entry): node for entry, node in found.items() if entry not in outer}


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isprintable()


def _inside(entry: str, outer: str) -> bool:
    return entry != outer and (not outer or entry.startswith(outer + "."))


def _tensors(
    content: Mapping[Any, Any], path: str | os.PathLike[str], say: Say
) -> dict[str, Tensor]:
    unnamed = [k for k, v in content.items() if isinstance(v, Tensor) and not _is_name(k)]
    if unnamed:
        raise ValueError(
            f"{path} holds no state dict (tensors by name): one of its tensors is called "
            f"{unnamed[0]!r:.80}, which is not a name"
        )
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    if others := [k if _is_name(k) else repr(k) for k in content if k not in state]:
        say(f"{path}: ignored beside the weights: {_some(others)}")
    return {plain: state[name] for plain, name in _unwrapped(state).items()}


def _usual(paths: Iterable[str]) -> list[str]:
    """Those with the most usual name; all of them if no name is usual."""

    def rank(path: str) -> int:
        last = path.rpartition(".")[2]
        return USUAL.index(last) if last in USUAL else len(USUAL)

    ranks = {path: rank(path) for path in paths}
    least = min(ranks.values())
    return [path for path in ranks if ranks[path] == least]


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    architecture: str | None = None,
    say: Say = print,
) -> None:
    """Load a checkpoint's tensors into ``module``, in its own precision, each exactly once.

    Names may begin with more than the network's (Lightning's ``model.``).

    Args:
        architecture: what the file says that it holds, for messages.
        say: called with a line on counters in the file that the network does not have.

    Raises:
        ValueError: naming the tensors that are missing, unexpected, of another shape or kind,
            or whose values no trained network has.
    """
    expected = module.state_dict()
    ours = _unwrapped(expected)
    starts = _starts(state, ours)
    start, *rivals = _usual(starts)
    if rivals:
        several = _some([start, *rivals], " or ")
        raise ValueError(f"{path} holds several networks: choose with teacher.weights={several}")
    if len(starts) > 1:
        say(_choice(path, start, starts))
    dot = start and start + "."
    named = {name: dot + k for k, name in ours.items() if dot + k in state}
    others = [s for s in starts if s != start]
    extra = state.keys() - set(named.values())
    extra -= {k for k in extra if any(_inside(k, s) for s in others)}
    counters = sorted(k for k in extra if k.rpartition(".")[2] in COUNTERS)
    unexpected = sorted(extra - set(counters))
    if listed := _misfits(state, expected, named, unexpected):
        hint = f"; the file says that it holds {architecture!r}" if architecture else ""
        if start and not all(_inside(name, start) for name in unexpected):
            hint += f"; teacher.weights={start} leaves out what is not below it"
        raise ValueError(f"{path} does not fit {type(module).__name__}: {listed}{hint}")
    if counters:
        say(f"{path}: ignored beside the weights: {_some(counters)}")
    for name, file in named.items():
        _check_kind(state[file], expected[name], f"{path}: {file}")
    module.load_state_dict({name: state[file] for name, file in named.items()}, strict=True)
    check_values(module, path)


def _misfits(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    named: Mapping[str, str],
    unexpected: Sequence[str],
) -> str:
    """Why a state dict does not fit a network, in words; empty if it fits."""
    # PyTorch itself fills in BatchNorm's counter, which older checkpoints do not have.
    absent = (k for k in expected if not k.endswith("num_batches_tracked"))
    shapes = {k: (state[file].shape, expected[k].shape) for k, file in named.items()}
    problems = {
        "missing": [k for k in absent if k not in named],
        "unexpected": unexpected,
        "of another shape": [
            f"{k} ({dims(theirs)} in the file, {dims(ours)} in the network)"
            for k, (theirs, ours) in shapes.items()
            if theirs != ours
        ],
    }
    return "; ".join(f"{kind}: {_some(keys)}" for kind, keys in problems.items() if keys)


def _starts(theirs: Iterable[str], ours: Mapping[str, str]) -> list[str]:
    """What names of a file begin with where they go on like most of a network's; "" if nothing."""
    counts: Counter[str] = Counter()
    for name in theirs:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in ours:
                counts[".".join(parts[:i])] += 1
    most = max(counts.values(), default=0)
    starts = [start for start, count in counts.items() if count == most]
    if "" in starts or most <= len(ours) / 2:  # else chance: many networks have a "0.weight"
        return [""]
    return starts


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """{name without wrappers at any depth: name}; names as they are where two would be alike."""
    names = list(names)
    plain = {".".join(p for p in k.split(".") if p not in WRAPPERS): k for k in names}
    return plain if len(plain) == len(names) else dict(zip(names, names, strict=True))


def _check_kind(tensor: Tensor, like: Tensor, name: str) -> None:
    """Check that a tensor of a file can be loaded into the network's without a change of kind."""
    wrong = mend = ""
    if tensor.is_meta:
        wrong, mend = "has no values (device meta)", "save it from a device that holds it"
    elif tensor.is_quantized:
        wrong, mend = "is quantised", "save tensor.dequantize()"
    elif tensor.layout != torch.strided:
        wrong, mend = "is sparse", "save tensor.to_dense()"
    elif like.is_floating_point() and not tensor.is_floating_point():
        wrong, mend = f"holds {_kind(tensor)} values", "save real floating-point weights"
    elif not like.is_floating_point() and not torch.equal(tensor.to(like.dtype).to(tensor), tensor):
        wrong, mend = f"holds {_kind(tensor)} values", f"save it as {_kind(like)}"
    if wrong:
        raise ValueError(f"{name} {wrong}, but the network's is {_kind(like)}: {mend}")


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_values(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Check that a trained network can have such weights.

    Raises:
        ValueError: naming a tensor that is not finite or a variance below 0, or where all is 0.
    """
    state = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
    masks = {k for k, _ in module.named_buffers() if "running_" not in k}  # may hold infinity
    for name, tensor in state.items():
        bad = int((tensor.isnan() if name in masks else ~tensor.isfinite()).sum())
        if bad:
            raise ValueError(
                f"{path}: {name} is not finite (NaN or infinite in {bad} of {tensor.numel()} "
                "values): the training that wrote it diverged; take an earlier checkpoint"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ValueError(f"{path}: {name} is below 0, which no variance can be: a damaged file")
    matrices = [v for v in state.values() if v.dim() > 1]
    if matrices and not any(bool(v.any()) for v in matrices):
        raise ValueError(f"{path}: all weights are 0: nothing was trained, or nothing was saved")


def _some(keys: Sequence[str], join: str = ", ", most: int = 4) -> str:
    listed = join.join(key[:120] for key in keys[:most])
    return listed + (f" and {len(keys) - most} more" if len(keys) > most else "")


def dims(shape: Iterable[int]) -> str:
    """A shape as text: 3x32x32."""
    return "x".join(map(str, shape)) or "scalar"
