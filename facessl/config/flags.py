"""The parser of every command: help as people write flags, with dashes, bare switches and types in words."""

from __future__ import annotations

import re
from argparse import Action, HelpFormatter
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter


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

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help; switches that are off are written bare, as `--resume`."""
        text = super().format_help(formatter)
        for action in self._actions:
            if getattr(action, "_typehint", None) is bool and action.default is False:
                text = re.sub(rf"(--{re.escape(action.dest)})\s+\{{true,false\}}", r"\1", text)
        return re.sub(r"--[\w.]+", lambda flag: flag[0].replace("_", "-"), text)


def plain_type(name: str) -> str:
    """A type's name as a person writes it: `Optional[Literal['a', 'b']]` is `a | b | null`."""
    name = re.sub(r"<class '([\w.]+)'>", r"\1", name)
    name = re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", "").replace(", ", " | "), name)
    name = re.sub(r"^Optional\[(.*)\]$", r"\1 | null", name)
    return re.sub(r"^Union\[([^\[\]]*)\]$", lambda found: found[1].replace(", ", " | "), name)


def with_true(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """`--resume` means `--resume true`, as people expect of a switch."""
    switches = {f"--{a.dest}" for a in parser._actions if getattr(a, "_typehint", None) is bool}
    out = []
    for word, after in zip(argv, [*argv[1:], ""], strict=False):
        bare = word in switches and after.lower() not in ("true", "false", "yes", "no")
        out.append(f"{word}=true" if bare else word)
    return out
