"""Names for the stages of other libraries' networks, from one dry pass without data."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TRUNKS = ("features", "trunk_output", "encoder.layers", "layers", "blocks")
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
STAGES = 4  # as the papers on feature distillation count them

Shapes = dict[str, tuple[int, ...]]


def torchvision_stages(model: nn.Module) -> tuple[dict[str, str], frozenset[str]]:
    """The stages of a network of torchvision, and which of them have the channels last.

    Consecutive parts of its trunk with outputs of one size are a stage. The last part stands for
    the stage.

    Returns:
        {stage1: module path, ...}, and those paths whose maps are [B, H, W, C]; both empty where
        the trunk is none of those known.
    """
    modules = dict(model.named_modules())
    trunk = next((name for name in TRUNKS if name in modules), "")
    prefix = f"{trunk}." if trunk else ""
    paths = [prefix + name for name, _ in modules[trunk].named_children()]
    size = getattr(model, "image_size", 224)  # a ViT's; others take any
    shapes = dry_pass(model, paths, (3, size, size))
    seen = [path for path in paths if len(shapes.get(path, ())) in (3, 4)]
    return _named(modules, seen, [_places(shapes[path]) for path in seen], shapes)


def timm_stages(model: nn.Module, in_channels: int) -> tuple[dict[str, str], frozenset[str]]:
    """The same for a network of timm: the last of the features that it lists at each reduction."""
    information = getattr(model, "feature_info", None) or []
    listed = [entry for entry in getattr(information, "info", information) if "module" in entry]
    paths = [entry["module"] for entry in listed]
    modules = dict(model.named_modules())
    if len(set(paths)) < len(paths) or not set(paths) & set(modules):
        return {}, frozenset()
    sizes = (getattr(m, "img_size", None) for m in modules.values())  # of what embeds patches
    own = next((size for size in sizes if isinstance(size, tuple)), None)
    shape = (in_channels, *(own or model.default_cfg["input_size"][1:]))  # type: ignore[index,union-attr]
    shapes = dry_pass(model, [path for path in paths if path in modules], shape)
    seen = [entry for entry in listed if len(shapes.get(entry["module"], ())) in (3, 4)]
    return _named(modules, [e["module"] for e in seen], [e.get("reduction") for e in seen], shapes)


def dry_pass(model: nn.Module, paths: Iterable[str], shape: Sequence[int]) -> Shapes:
    """The shapes of what modules give for one input, computed without numbers.

    Modules that do not return a single tensor, or do not run, are left out; so are all modules if
    the network does not take an input of this shape.
    """
    shapes: Shapes = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[path] = tuple(output.shape)

        return hook

    hooks = [model.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    state = itertools.chain(model.named_parameters(), model.named_buffers())
    weights = {name: tensor.detach().to("meta") for name, tensor in state}
    was_training = model.training
    try:
        with torch.no_grad():
            images = torch.empty(1, *shape, device="meta")
            torch.func.functional_call(model.eval(), weights, images)
    except (RuntimeError, ValueError, AssertionError):
        shapes.clear()
    finally:
        model.train(was_training)
        for handle in hooks:
            handle.remove()
    return shapes


def _named(
    modules: dict[str, nn.Module], paths: list[str], sizes: list[Hashable], shapes: Shapes
) -> tuple[dict[str, str], frozenset[str]]:
    """The last module at each size; in a network with a single size, the ends of its quarters."""
    size_of = dict(zip(paths, sizes, strict=True))
    groups = [list(group) for _, group in itertools.groupby(paths, size_of.__getitem__)]
    groups = [g for g in groups if not all(isinstance(modules[path], POOLS) for path in g)]
    if len(groups) == 1:
        count, only = min(STAGES, len(paths)), groups[0]
        ends = [only[-(-len(only) * (i + 1) // count) - 1] for i in range(count)]
    else:
        ends = [group[-1] for group in groups[-STAGES:]]
    taps = {f"stage{i + 1}": path for i, path in enumerate(ends)}
    return taps, frozenset(path for path in ends if channels_last(shapes[path]))


def channels_last(shape: Sequence[int]) -> bool:
    """Whether a shape, of a square input, is [B, H, W, C]."""
    return len(shape) == 4 and shape[2] != shape[3] and shape[1] == shape[2]


def _places(shape: Sequence[int]) -> Hashable:
    """(H, W) of a map, (N,) of tokens."""
    if len(shape) == 3:
        return (shape[1],)
    return tuple(shape[1:3] if channels_last(shape) else shape[2:])
