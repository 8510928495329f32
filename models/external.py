"""Any classifier of torchvision or timm by name, untrained: nothing is downloaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from models.stages import timm_stages, torchvision_stages

ATTENTION = r"^blocks\.\d+\.attn\.qkv$|^encoder\.layers\.encoder_layer_\d+\.ln_1$"


def torchvision_model(name: str, in_channels: int, num_classes: int, **kwargs: Any) -> nn.Module:
    """A classifier of ``torchvision.models``, such as ``resnet18``; ``kwargs`` go to its builder.

    Raises:
        ValueError: for an unknown name or argument, or inputs without 3 channels.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(_unknown(name, known, "torchvision"))
    if in_channels != 3:
        raise ValueError(
            f"torchvision's {name} takes 3 channels, but the data has {in_channels}: "
            "use the model timm with the same name, or data with 3 channels"
        )
    arguments = torchvision_arguments(name, {"num_classes": num_classes} | kwargs)
    model = _build(torchvision.models.get_model, name, weights=None, **arguments)
    stages = torchvision_stages(model)
    head_name, head = list(model.named_children())[-1]
    ends_linear = isinstance([*head.modules()][-1], nn.Linear)
    ends = {"pooled": _pooled(model, head_name), "logits": head_name if ends_linear else None}
    return _with_taps(model, stages, ends)


def torchvision_arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of torchvision's builder of a network, besides its name."""
    if name in ("googlenet", "inception_v3"):  # else training returns a tuple with extra heads
        return {"aux_logits": False, "init_weights": True} | dict(given)
    return dict(given)


def timm_model(name: str, in_channels: int, num_classes: int, **kwargs: Any) -> nn.Module:
    """A classifier of timm, such as ``resnet18``; ``kwargs`` go to its builder (``img_size=32``).

    Raises:
        ValueError: for an unknown name or argument, or where timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise ValueError("timm is not installed: run pip install -e '.[timm]'") from None
    if not timm.is_model(name):
        raise ValueError(_unknown(name, timm.list_models(), "timm"))
    channels = {"in_chans": in_channels, "num_classes": num_classes}
    model = _build(timm.create_model, name, pretrained=False, **channels, **kwargs)
    modules = dict(model.named_modules())
    classifier = model.get_classifier()  # type: ignore[operator]
    head_name = next((n for n, m in modules.items() if n and m is classifier), None)
    if isinstance(classifier, nn.Conv2d):  # its output is not flat yet
        head_name = None
    # timm's own names for what the classifier reads, the one nearest to it first
    pools = ("head_drop", "head.drop", "flatten", "global_pool")
    pooled = next((n for n in pools if n in modules), None)
    if pooled is not None and isinstance(modules[pooled], nn.Identity):
        pooled = None
    stages = timm_stages(model, in_channels)
    return _with_taps(model, stages, {"pooled": pooled, "logits": head_name})


def library_defaults(model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a network's library says about the inputs that its published weights expect.

    Args:
        model: a node with a ``_target_``.

    Returns:
        "timm's resnet18" and ``shape``, ``mean``, ``std`` and ``classes`` (names, or their
        number); "" and nothing for a network of another origin or an unknown name.
    """
    library = LIBRARIES.get(model.get("_target_", ""))
    try:
        return library(str(model.get("name"))) if library else ("", {})
    except (ImportError, ValueError, KeyError, RuntimeError, AttributeError):
        return "", {}  # building the network says what is wrong


def _torchvision_defaults(name: str) -> tuple[str, dict[str, Any]]:
    weights = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    preset = weights.transforms()
    found = {
        "shape": (3, *(preset.crop_size * 2)[:2]),
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "classes": tuple(weights.meta["categories"]),
    }
    return f"torchvision's {name}", found


def _timm_defaults(name: str) -> tuple[str, dict[str, Any]]:
    import timm

    preset = timm.get_pretrained_cfg(name)
    if preset is None:
        return "", {}
    found = {
        "shape": tuple(preset.input_size),
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "classes": preset.num_classes,
    }
    return f"timm's {name}", found


LIBRARIES = {
    "models.external.torchvision_model": _torchvision_defaults,
    "models.external.timm_model": _timm_defaults,
}


def _build(builder: Callable[..., nn.Module], name: str, **kwargs: Any) -> nn.Module:
    try:
        model = builder(name, **kwargs)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be built: {error}") from None
    for m in model.modules():
        if hasattr(m, "inplace"):  # an in-place rectifier overwrites what a hook has just seen
            m.inplace = False  # type: ignore[assignment]
    return model


def _pooled(model: nn.Module, head_name: str) -> str | None:
    """The module of a torchvision network that outputs the pooled feature or class token, [B, D].

    Many flatten it themselves. Done in a module that has no weights, a hook can see it.
    """
    head = model.get_submodule(head_name)
    inside = [*head] if isinstance(head, nn.Sequential) else [head]
    if hasattr(model, "avgpool") and isinstance(inside[0], (nn.Linear, nn.Dropout)):
        model.avgpool = nn.Sequential(model.get_submodule("avgpool"), nn.Flatten())
        return "avgpool"
    flat = next((i for i, m in enumerate(inside[:-1]) if isinstance(m, nn.Flatten)), None)
    if flat is not None:
        return f"{head_name}.{flat}"
    alone = [(name, m) for name, m in head.named_modules() if isinstance(m, nn.Linear)]
    if len(alone) == 1 and len(inside) == 1:  # DenseNet's, or in a container a ViT's
        [(name, linear)] = alone
        path = f"{head_name}.{name}".rstrip(".")
        model.set_submodule(path, _Head(linear))
        return f"{path}.pooled"
    if isinstance(head, nn.Sequential) and [type(m) for m in head] == [nn.Dropout, nn.Linear]:
        head[0] = nn.Sequential(nn.Flatten(), head[0])
        return f"{head_name}.0.0"
    return None


class _Head(nn.Linear):
    """A given Linear, with its input exposed to hooks as the output of ``pooled``."""

    def __init__(self, linear: nn.Linear) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.pooled = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pooled(x))


def _with_taps(
    model: nn.Module, stages: tuple[dict[str, str], frozenset[str]], ends: dict[str, str | None]
) -> nn.Module:
    """Name the stages and the two ends, ``pooled`` and ``logits``, as far as they are known.

    A transformer's ``attention`` is what the last layer's queries, keys and values are, or, where
    no module gives these, what they come from (``distillers.vit``).
    """
    taps, last = stages
    taps |= {name: path for name, path in ends.items() if path}
    if layers := [n for n, _ in model.named_modules() if re.search(ATTENTION, n)]:
        taps["attention"] = layers[-1]
    model.taps, model.channels_last = taps, last  # type: ignore[assignment]
    return model


def _unknown(name: str, known: Iterable[str], library: str) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{library} has no classifier {name!r}{hint}"
