"""Parser of every command: flags in the help as they are typed, errors in one sentence.

The help of a flag is written elsewhere: under `Attributes:` of the settings class (`config/pretrain`,
`config/finetune`, `config/run`, `config/optim`, `Args` of a method or task, `tools/options`, `tools/plan`), in the
docstring of a protocol (`evaluation/protocols`), or where the command is made (`cli`).
"""

import itertools
import re
import types
import typing
from argparse import Action
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from facessl.config.run import one_line

#: Values of a switch.
_BOOLS = ("true", "false", "yes", "no")


class _Formatter(DefaultHelpFormatter):
    """Help with types in words instead of Python's."""

    def _get_type_str(self, action: Action) -> str | None:
        name = super()._get_type_str(action)
        return None if name is None else plain_type(name)


class Parser(ArgumentParser):
    """Parser that raises its errors and has readable help."""

    def __init__(self, **options: Any) -> None:
        # The library makes parsers of this class itself, with options of its own.
        super().__init__(**{"exit_on_error": False, "formatter_class": _Formatter, **options})

    def format_help(self, *formatter: Any) -> str:  # which older versions of jsonargparse do not take
        """Return the help; switches that are off are written bare, as `--resume`."""
        text = super().format_help(*formatter)
        for action in self._actions:
            if getattr(action, "_typehint", None) is bool and action.default is False:
                text = re.sub(rf"(--{re.escape(action.dest)})\s+\{{true,false\}}", r"\1", text)
        text += "\nYour own method, source or task: facessl --plugin FILE.py COMMAND ... (docs/extending.md)\n"
        return re.sub(r"--[\w.]+", lambda flag: dashed(flag[0][2:]), text)


def dashed(name: str) -> str:
    """Flag of a setting: no_crop -> --no-crop."""
    return "--" + name.replace("_", "-")


def plain_type(name: str) -> str:
    """Readable name of a type: `Optional[Literal['a', 'b']]` -> `a | b | null`."""
    name = re.sub(r"<class '([\w.]+)'>", r"\1", name)
    name = re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", "").replace(", ", " | "), name)
    name = re.sub(r"^Optional\[(.*)\]$", r"\1 | null", name)
    return re.sub(r"^Union\[([^\[\]]*)\]$", lambda match: match[1].replace(", ", " | "), name)


def underscored(word: str) -> str:
    """A flag as the parser knows it: --no-crop=true -> --no_crop=true; other words stay as they are."""
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def with_true(argv: Sequence[str], parser: Parser, switches: Iterable[str] = ()) -> list[str]:
    """`argv` with `--resume=true` for a bare `--resume`, and for one that may stand alone or before a number.

    `switches` are names of more flags that may stand alone.
    """
    hints = {f"--{action.dest}": getattr(action, "_typehint", None) for action in parser._actions}
    hints |= {f"--{name}": bool for name in switches}

    def bare(word: str, after: str) -> bool:
        kinds = typing.get_args(hints.get(word)) or (hints.get(word),)
        is_value = after.lower() in _BOOLS or (int in kinds and re.fullmatch(r"-?\d+", after))
        return bool in kinds and not is_value

    return [
        f"{word}=true" if bare(word, after) else word
        for word, after in itertools.zip_longest(argv, argv[1:], fillvalue="")
    ]


def is_null(value: Any, hint: Any) -> bool:
    """Whether `value` is the word None or none for a field of type `hint` that has null, and no text of that name."""
    if value not in ("None", "none"):
        return False
    kinds = typing.get_args(hint)
    literals = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
    texts = {str, Path, Any, "None", "none"}.intersection([*kinds, *itertools.chain(*map(typing.get_args, literals))])
    return NoneType in kinds and not texts


def with_null(argv: Sequence[str], parser: Parser) -> list[str]:
    """`argv` with null for the word None or none where `is_null` says so."""
    hints = {f"--{action.dest}": getattr(action, "_typehint", None) for action in parser._actions}
    found: list[str] = []
    for word in argv:
        flag, equals, value = word.partition("=")
        if equals and is_null(value, hints.get(flag)):
            word = f"{flag}=null"
        elif found and is_null(word, hints.get(found[-1])):
            word = "null"
        found.append(word)
    return found


def readable(error: Exception, parser: ArgumentParser) -> str:
    """The parser's error message in one sentence that names the fix."""
    text = one_line(str(error))
    match = re.search(r'[Pp]arser key "([^"]+)": (.*?)(?:Got value|Given value): (.*)$', text)
    if extra := re.search(r"[Uu]nrecognized arguments: (\S+)", text):
        return extra_word(extra[1], parser)
    if not match:
        return text
    key, reason, value = match.groups()
    hint = next((a._typehint for a in parser._actions if a.dest == key and hasattr(a, "_typehint")), None)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    exact = [str(kind) for kind in (typing.get_args(hint) if union else [hint])]
    kinds = exact if re.search("tuple|list|dict", str(hint)) else re.findall(_EXPECTED, reason)
    valid = " or ".join(dict.fromkeys(_in_words(kind.strip(" .")) for kind in kinds))
    return f"{key} = {value!r} is not valid: give {valid}"


def extra_word(word: str, parser: ArgumentParser) -> str:
    """The message for a word that no flag and no positional argument takes."""
    if word.startswith("-"):
        return f"{word} is not a flag: flags begin with two dashes"
    taken = [action.dest for action in parser._actions if not action.option_strings]
    fix = "give photos as one folder or NAME:PATH, and put names with spaces or * in quotes"
    if not {"source", "photos"}.intersection(taken):
        fix = f"{parser.prog} takes {' and '.join(name.upper() for name in taken) or 'only flags'}"
    return f"{word} is one word too many: {fix}"


_EXPECTED = r"Expected an? (.+?)(?= - |\. |\.$| Given|$)"
_PLAIN = {"None": "null", "NoneType": "null", "float": "a number", "int": "a whole number", "bool": "true or false"}


def _in_words(kind: str) -> str:
    """A type in words; lists and mappings by an example in quotes."""
    kind = re.sub(r"^(typing\.)?Literal\[(.+)\]$", r"one of \2", re.sub(r"<class '(.+?)'>", r"\1", kind))
    name, _, arguments = kind.removesuffix("]").partition("[")
    parts = arguments.split(", ")
    if name == "dict":
        return f"names and values, such as '{{name: {'0.1' if parts[-1] == 'float' else 'value'}}}'"
    if name in ("tuple", "list"):
        item = {"float": "0.1", "int": "1", "str": "name"}.get(parts[0], "{name: value}")
        fixed = name == "tuple" and parts[-1] != "..."
        example = ", ".join([item] * (len(parts) if fixed else 2))
        return f"a list{f' of {len(parts)}' if fixed else ''}, such as '[{example}]'"
    return _PLAIN.get(kind, "a text" if kind == "str" else kind)
