"""The parser of every command: help as people write flags, and errors in one sentence."""

import itertools
import re
import types
import typing
from argparse import Action
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from facessl.config.run import one_line


class _Formatter(DefaultHelpFormatter):
    """Types in words instead of Python's."""

    def _get_type_str(self, action: Action) -> str | None:
        name = super()._get_type_str(action)
        return None if name is None else plain_type(name)


class Parser(ArgumentParser):
    """A parser whose errors are exceptions and whose help is readable."""

    def __init__(self, **options: Any) -> None:
        # The library makes parsers of this class itself, with options of its own.
        super().__init__(**{"exit_on_error": False, "formatter_class": _Formatter, **options})

    @property
    def switches(self) -> set[str]:
        """Names of the settings that are true or false: `--resume` alone means `--resume true`."""
        return {action.dest for action in self._actions if getattr(action, "_typehint", None) is bool}

    def format_help(self, *formatter: Any) -> str:  # which older versions of jsonargparse do not take
        """The help; switches that are off are written bare, as `--resume`."""
        text = super().format_help(*formatter)
        for action in self._actions:
            if action.dest in self.switches and action.default is False:
                text = re.sub(rf"(--{re.escape(action.dest)})\s+\{{true,false\}}", r"\1", text)
        text += "\nYour own method, source or task: facessl --plugin FILE.py COMMAND ... (docs/extending.md)\n"
        return re.sub(r"--[\w.]+", lambda flag: dashed(flag[0][2:]), text)


def dashed(name: str) -> str:
    """A setting's name as a flag: no_crop -> --no-crop."""
    return "--" + name.replace("_", "-")


def plain_type(name: str) -> str:
    """A type's name as a person writes it: `Optional[Literal['a', 'b']]` is `a | b | null`."""
    name = re.sub(r"<class '([\w.]+)'>", r"\1", name)
    name = re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", "").replace(", ", " | "), name)
    name = re.sub(r"^Optional\[(.*)\]$", r"\1 | null", name)
    return re.sub(r"^Union\[([^\[\]]*)\]$", lambda found: found[1].replace(", ", " | "), name)


def is_bool(word: str) -> bool:
    """Whether a word is the value of a switch."""
    return word.lower() in ("true", "false", "yes", "no")


def with_true(argv: Sequence[str], parser: Parser) -> list[str]:
    """`argv` with `--resume=true` for a bare `--resume`, and for one that may stand alone or before a number."""
    hints = {f"--{action.dest}": getattr(action, "_typehint", None) for action in parser._actions}

    def bare(word: str, after: str) -> bool:
        kinds = typing.get_args(hints.get(word)) or (hints.get(word),)
        return bool in kinds and not is_bool(after) and not (int in kinds and re.fullmatch(r"-?\d+", after))

    return [
        f"{word}=true" if bare(word, after) else word
        for word, after in itertools.zip_longest(argv, argv[1:], fillvalue="")
    ]


def readable(error: Exception, parser: ArgumentParser) -> str:
    """The parser's complaint in one sentence a person can act on."""
    text = one_line(str(error))
    found = re.search(r'[Pp]arser key "([^"]+)": (.*?)(?:Got value|Given value): (.*)$', text)
    if not found:
        return text
    key, middle, value = found.groups()
    hint = next((a._typehint for a in parser._actions if a.dest == key and hasattr(a, "_typehint")), None)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    exact = [str(kind) for kind in (typing.get_args(hint) if union else [hint])]
    kinds = exact if re.search("tuple|list|dict", str(hint)) else re.findall(_EXPECTED, middle)
    wanted = " or ".join(dict.fromkeys(_spoken(kind.strip(" .")) for kind in kinds))
    return f"{key} = {value!r} is not valid: give {wanted}"


_EXPECTED = r"Expected an? (.+?)(?= - |\. |\.$| Given|$)"
_PLAIN = {"None": "null", "NoneType": "null", "float": "a number", "int": "a whole number", "bool": "true or false"}


def _spoken(kind: str) -> str:
    """A type in words; for lists and mappings how they are written, on the command line in quotes."""
    kind = re.sub(r"^(typing\.)?Literal\[(.+)\]$", r"one of \2", re.sub(r"<class '(.+?)'>", r"\1", kind))
    name, _, inside = kind.removesuffix("]").partition("[")
    parts = inside.split(", ")
    if name == "dict":
        return f"names and values, such as '{{name: {'0.1' if parts[-1] == 'float' else 'value'}}}'"
    if name in ("tuple", "list"):
        one = {"float": "0.1", "int": "1", "str": "name"}.get(parts[0], "{name: value}")
        fixed = name == "tuple" and parts[-1] != "..."
        shown = ", ".join([one] * (len(parts) if fixed else 2))
        return f"a list{f' of {len(parts)}' if fixed else ''}, such as '[{shown}]'"
    return _PLAIN.get(kind, "a text" if kind == "str" else kind)
