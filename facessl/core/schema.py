"""JSON files: written without NaN, read with the types of all fields checked."""

import dataclasses
import json
import math
import sys
import typing
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Required, Union, get_args, get_origin

from facessl.core.errors import CheckpointError
from facessl.core.files import read_regular

_WORDS: dict[Any, str] = {
    **{bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", type(None): "null"},
    **{list: "a list", dict: "an object"},
}


def read_json(path: Path, kind: Any) -> Any:
    """The value in a JSON file, checked as by `check`."""
    try:
        value = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({' '.join(str(error).split())[:120]})") from None
    check(value, kind, path)
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of a value; a number that is not finite, which JSON does not have, is null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """`value` with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check(value: Any, kind: Any, file: str | Path) -> None:
    """Raise CheckpointError with the name of the first field of `value`, read from `file`, of another type."""
    if reason := misfit(value, kind):
        raise CheckpointError(f"{file} was not written by facessl, or was changed: {reason}")


def misfit(value: Any, kind: Any, name: str = "") -> str | None:
    """Describe the first part of `value` that is not of its type; None if all are.

    Args:
        value: from a JSON file.
        kind: a TypedDict, whose objects may have more fields (with total=False the Required ones are needed); a
            dataclass, whose objects may not; `dict[str, T]`, `list[T]`, `tuple[T, T]` (a list of that length), a
            Literal, a union, Any, or a class. `float` takes every finite number.
        name: of the value, dotted.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Required:
        return misfit(value, parts[0], name)
    if origin in (Union, UnionType):
        reasons = [misfit(value, part, name) for part in parts]
        return None if None in reasons else reasons[0]
    fields: list[tuple[str, Any, Any]] = []
    if kind is Any or (origin is Literal and value in parts):
        return None
    if typing.is_typeddict(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind, include_extras=True)
        required = {key for key, part in hints.items() if kind.__total__ or get_origin(part) is Required}
        if missing := sorted(required - value.keys()):
            return f"{name or 'it'} has no {missing[0]}"
        fields = [(key, value[key], part) for key, part in hints.items() if key in value]
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        if unknown := sorted(value.keys() - hints.keys()):
            return f"{name or 'it'} has the unknown field {unknown[0]}"
        fields = [(key, item, hints[key]) for key, item in value.items()]
    elif origin is dict and isinstance(value, dict):
        fields = [(str(key), item, parts[1]) for key, item in value.items()]
    elif (origin is list or parts[1:] == (...,)) and isinstance(value, list):
        fields = [(str(i), item, parts[0]) for i, item in enumerate(value)]
    elif origin is tuple and isinstance(value, list) and len(value) == len(parts):
        fields = [(str(i), item, part) for i, (item, part) in enumerate(zip(value, parts, strict=True))]
    elif not _is(value, kind):
        return f"{name or 'it'} is {_shown(value)} instead of {_word(kind)}"
    return next((r for key, item, part in fields if (r := misfit(item, part, f"{name}.{key}".lstrip(".")))), None)


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(kind, type) and not typing.is_typeddict(kind) and isinstance(value, kind)


def _word(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a list" if ... in get_args(kind) else f"a list of {len(get_args(kind))}"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    kind = dict if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind) else get_origin(kind) or kind
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value) if isinstance(value, int | float | str) else _word(type(value))
    return text if len(text) <= 40 else text[:37] + "..."
