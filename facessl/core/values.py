"""Checks of hyper-parameters. Imports nothing large, so that a plug-in's `Args` can be read without torch."""

import math
import os
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from facessl.core.errors import ConfigError

#: Check of a hyper-parameter, and its valid values in words.
Rule = tuple[Callable[[Any], bool], str]
FRACTION: Rule = (lambda v: 0 <= v <= 1, "a number from 0 to 1")
INNER_FRACTION: Rule = (lambda v: 0 < v < 1, "a fraction between 0 and 1")
POSITIVE: Rule = (lambda v: v > 0, "more than 0")
FROM_0: Rule = (lambda v: v >= 0, "0 or more")
FROM_1: Rule = (lambda v: v >= 1, "1 or more")
RANGE: Rule = (lambda v: len(v) == 2 and 0 < v[0] <= v[1] < math.inf, "(low, high) with 0 < low <= high")


def between(low: float, high: float) -> Rule:
    """Rule of a number from `low` to `high`."""
    return lambda v: low <= v <= high, f"a number from {low} to {high}"


def as_text(value: Any) -> Any:
    """A path object as its text; anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def check_values(args: Any, rules: Mapping[str, Rule], *, prefix: str = "") -> None:
    """Raise ConfigError for the first value of a dataclass outside its field's `Literal`, or that breaks a rule; a
    value of a type that the rule cannot compare breaks it.

    `rules` maps names of fields, separated by blanks, to the rule of all of them; None passes every rule.
    `prefix` precedes the name in the message.
    """
    for name, hint in get_type_hints(type(args)).items():
        known = [choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)]
        known += [None] if NoneType in get_args(hint) else []
        if any(known) and (value := getattr(args, name)) not in known:
            raise ConfigError(f"{prefix}{name} is {value!r}: give one of {', '.join(map(str, known))}")
    for names, (valid, valid_values) in rules.items():
        for name in names.split():
            if (value := getattr(args, name)) is not None and not _passes(valid, value):
                raise ConfigError(f"{prefix}{name} is {value}: give {valid_values}")


def _passes(valid: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(valid(value))
    except TypeError:
        return False
