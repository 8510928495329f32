"""Check plain values, and the parts that a configuration builds, against annotations."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import os
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

from torch import Tensor, nn

MISSING = "???"  # stands for a value that has no default


def shorten(value: Any, show: Callable[[Any], str] = repr) -> str:
    """A value as text for a message, shortened if it is long."""
    text = show(value)
    return text if len(text) <= 120 else f"{text[:80]}...{text[-10:]}"


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a target's named arguments, and under "return" that of its result."""
    try:
        if inspect.isclass(target):
            return {**get_type_hints(target.__init__), "return": target}
        return get_type_hints(target)
    except Exception:  # a library's annotation that does not evaluate: names are still checked
        return {}


def check_needs(kind: type, base: type) -> None:
    """Check that what a class says it needs is something that its base knows.

    Raises:
        TypeError: for an attribute ``needs_...`` that is mistyped, and would be silently ignored.
    """
    known = [name for name in dir(base) if name.startswith("needs_")]
    for name in vars(kind):
        if name.startswith("needs_") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there is: {', '.join(known)}"
            raise TypeError(f"{kind.__name__}.{name} means nothing to a {base.__name__}; {hint}")


def is_path(annotation: Any) -> bool:
    """Whether the annotation is that of a path to a file or folder."""
    return any(
        a in (Path, os.PathLike) or get_origin(a) is os.PathLike
        for a in (annotation, *get_args(annotation))
    )


def check_type(value: Any, annotation: Any, path: str) -> list[str]:
    """The mistake if a plain value does not fit the annotation; none if it may fit."""
    if _fits(value, annotation):
        return []
    line = f"{path}={shorten(value)} should be {say(annotation)}"
    if value is not None and _fits(text := _as_text(value), annotation):
        line += f": put text that looks like something else in quotes, {_quote(path, text)}"
    return [line]


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(v) for v in value]
    return json.dumps(value) if value is None or isinstance(value, (bool, int, float)) else value


def _quote(path: str, text: Any) -> str:
    shown = json.dumps(text, ensure_ascii=False, separators=(",", ":"))
    return f"'{path}={shown}'" if len(shown) <= 120 else f'\'{path}=["0","1",...]\''


def _fits(value: Any, annotation: Any) -> bool:
    origin, args = get_origin(annotation), get_args(annotation)
    if value == MISSING:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if isinstance(annotation, NewType):
        return _fits(value, annotation.__supertype__)
    if origin is Literal:
        return value in args
    if annotation is type(None) or annotation is None:
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is str or is_path(annotation):
        return isinstance(value, str)
    container = origin or annotation
    if _is_protocol(container):
        return is_part(value, container)
    parts = (nn.Module, Tensor)
    if container is Callable or (inspect.isclass(container) and issubclass(container, parts)):
        return False  # a plain value is neither; a node with a _target_ is not checked here
    if inspect.isclass(container) and issubclass(container, Mapping):
        return isinstance(value, Mapping)
    if inspect.isclass(container) and issubclass(container, Sequence):
        return isinstance(value, (list, tuple)) and _items_fit(value, container, args)
    return True  # what a nested node builds, or an annotation that says nothing about plain values


def _items_fit(values: Sequence[Any], container: Any, args: tuple[Any, ...]) -> bool:
    """Whether all elements fit; a tuple needs the annotated length, unless that ends in dots."""
    if container is tuple and args and args[-1] is not Ellipsis:
        return len(values) == len(args) and all(map(_item_fits, values, args))
    return not args or all(_item_fits(v, args[0]) for v in values)


def _item_fits(value: Any, annotation: Any) -> bool:
    return (isinstance(value, Mapping) and "_target_" in value) or _fits(value, annotation)


def say(annotation: Any) -> str:
    """An annotation in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        tensors = len(args) > 1 and Tensor in args  # which no configuration can write
        return " or ".join(say(a) for a in args if not (tensors and a is Tensor))
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple and Ellipsis not in args:
        return f"a list of {len(args)}: {', '.join(map(say, args))}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if annotation is type(None):
        return "null"
    if is_path(annotation):
        return "a path"
    if inspect.isclass(annotation) and annotation not in names and not origin:
        return f"a {annotation.__name__}"
    return names.get(
        annotation, str(annotation).replace("typing.", "").replace("collections.abc.", "")
    )


def is_part(part: Any, annotation: Any) -> bool:
    """Whether a built object fits the annotation; true if that cannot be known.

    A function that waits for its last arguments (``_partial_``) is judged by what it would return.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(is_part(part, a) for a in args)
    container = origin or annotation
    if container is Callable:
        gives = hints_of(part.func).get("return") if isinstance(part, functools.partial) else None
        wanted = args[1] if args else None
        return callable(part) and not (
            inspect.isclass(gives) and inspect.isclass(wanted) and not issubclass(gives, wanted)
        )
    if isinstance(part, (list, tuple)) and args and _is_a(container, Sequence):
        return all(is_part(p, args[0]) for p in part)
    if _is_protocol(container):
        return all(hasattr(part, name) for name in _members(container))
    if not inspect.isclass(container):
        return True
    return isinstance(part, (int, float) if container is float else container)


def _is_a(container: Any, kind: type) -> bool:
    return inspect.isclass(container) and issubclass(container, kind)


def _is_protocol(kind: Any) -> bool:
    return bool(vars(kind).get("_is_protocol")) if inspect.isclass(kind) else False


def _members(protocol: type) -> list[str]:
    """The methods that a protocol asks for."""
    kinds = [k for k in protocol.__mro__ if _is_protocol(k)]
    return [n for k in kinds for n, v in vars(k).items() if callable(v) and n not in dir(object)]
