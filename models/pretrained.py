"""Loading a teacher: a network with a file's weights, checked against the data, and frozen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from data.checks import resized
from data.spec import InputSpec
from models.check import check_network
from models.checkpoint import load_weights, read_metadata, save_network
from models.classifier import Classifier
from models.state_dict import Say, dims, load_state

__all__ = [
    "check_network",
    "freeze",
    "load_classifier",
    "load_weights",
    "save_network",
]


def load_classifier(
    module: nn.Module,
    path: str | os.PathLike[str],
    default_spec: InputSpec | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Iterable[str] = (),
    taps: Iterable[str] = (),
    statistics: bool = False,
    range: Sequence[float] | None = None,
    weights: str | None = None,
    say: Say = print,
) -> Classifier:
    """Load a file's weights into ``module``, with the input specification they were trained for.

    Args:
        module: an untrained network of the file's architecture.
        default_spec: the data's, whose shape the network's inputs must have and whose range is
            assumed where the file does not say; None where the data is not known.
        mean: one value per channel, instead of the file's; needed where the file has none, but for
            texts, which are not normalised.
        std: likewise.
        classes: the data's class names, used where the file has none.
        taps: see :class:`models.classifier.Classifier`.
        statistics: likewise.
        range: smallest and largest value of an input, instead of the file's.
        weights: which of the file's networks; see :func:`models.checkpoint.load_weights`.
        say: called with a line on a choice that was made, or on what is left out.

    Raises:
        ValueError: if file, network and data do not fit together, or the normalisation is unknown;
            see also :func:`models.state_dict.load_state`.
    """
    state, metadata = load_weights(path, weights, say)
    saved_spec, saved_classes, count = read_metadata(metadata, path)
    spec = specification(saved_spec, default_spec, mean, std, range, path)
    if saved_spec is None and spec.kind.discrete:
        say(f"{path} does not name its words: those of the data, in their order, are assumed")
    known = tuple(classes)
    if count and known and count != len(known):
        raise ValueError(f"{path} knows {count} classes, but the data has {len(known)}")
    if saved_classes != known and sorted(saved_classes) == sorted(known):
        k = [a == b for a, b in zip(saved_classes, known, strict=True)].index(False)
        raise ValueError(
            f"{path} has its classes in another order than the data: class {k} is "
            f"{saved_classes[k]!r} there and {known[k]!r} here; order the data's classes alike"
        )
    load_state(module, state, path, metadata.get("architecture"), say)
    classifier = Classifier(module, spec, saved_classes or known, taps, statistics)
    if count or known:
        check_network(classifier, count or len(known))
    return classifier


def specification(
    saved: InputSpec | None,
    default: InputSpec | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    range: Sequence[float] | None,
    path: str | os.PathLike[str],
) -> InputSpec:
    """What a file's network expects of its input; see :func:`load_classifier`."""
    base = saved or default
    discrete = base is not None and base.kind.discrete  # which is not normalised
    if base is None or (saved is None and not discrete and (mean is None or std is None)):
        raise ValueError(
            f"{path} does not say how its inputs were normalised: "
            "pass teacher.mean=[...] teacher.std=[...], one value per channel"
        )
    if default is not None and base.shape != default.shape:
        raise ValueError(
            f"{path} takes inputs of shape {dims(base.shape)}, "
            f"but the data has {dims(default.shape)}: {resized(base.shape, default.shape)}, or "
            "another teacher"
        )
    keys = {"mean": mean, "std": std, "range": range}
    given = {k: tuple(v) for k, v in keys.items() if v is not None}
    try:
        return replace(base, **given)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(
            f"teacher.mean, teacher.std and teacher.range do not fit: {error}"
        ) from None


def freeze(classifier: Classifier) -> Classifier:
    """Put a network in eval mode, without gradients; returns it."""
    return classifier.requires_grad_(False).eval()
