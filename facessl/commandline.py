"""What the commands share: reading their words, one sentence for a wrong one, devices, help."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from facessl.errors import ConfigError, UnknownName


def configured(argv: list[str], command: Any) -> tuple[Any, bool]:
    """The configuration that flags ask for, and whether printing it was all that was wanted.

    `--resume` alone goes on with the settings that the run began with.
    """
    from facessl import parsing

    wanted = [w for w in argv if w not in ("--print_config", "--print-config")]
    parsed = parsing.parse(wanted, command=command)
    if parsed.resume and parsed.out is not None and (kept := Path(parsed.out) / "config.yaml").is_file():
        parsed = parsing.parse(wanted, base=yaml.safe_load(kept.read_text()), command=command)
    if len(wanted) < len(argv):
        print(yaml.safe_dump(parsed.to_dict(), sort_keys=False), end="")
    return parsed, len(wanted) < len(argv)


def call(name: str, command: Callable[..., int], words: list[str]) -> int:
    """Run command `name` with the words behind it; returns the exit status."""
    if "argv" in inspect.signature(command).parameters:
        return command(words)
    parser = ArgumentParser(prog=f"facessl {name}", exit_on_error=False, description=summary(command))
    lists = [n for n, p in inspect.signature(command).parameters.items() if str(p.annotation).startswith("list[")]
    parser.add_function_arguments(command, as_positional=True, skip=set(lists))
    for many in lists:  # behind the other positional words, as in `facessl predict RUN PHOTO...`
        parser.add_argument(many, nargs="+", type=str, help="one or more")
    return command(**parsed_words(parser, words, name))


def parsed_words(parser: ArgumentParser, words: list[str], name: str) -> dict[str, Any]:
    """Values of the flags of command `name`; a wrong one is one sentence."""
    from facessl.parsing import readable, with_true

    words = with_true([_underscored(w) for w in words], parser)
    known = {a.dest for a in parser._actions}
    for flag in (w[2:].partition("=")[0] for w in words if w.startswith("--")):
        if flag not in known:
            raise UnknownName("option", f"--{flag}", [f"--{k}" for k in known])
    try:
        parsed = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise ConfigError(f"{readable(error)} (see facessl {name} --help)") from None
    return {k: v for k, v in vars(parsed).items() if k != "config"}


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    key, equals, value = word.partition("=")
    return "--" + key[2:].replace("-", "_") + equals + value


def overview(commands: dict[str, Callable[..., int]]) -> str:
    """What `facessl --help` prints."""
    lines = ["Face representations learned without labels.", "", "usage: facessl COMMAND ...", ""]
    lines += [f"  {name:10} {summary(command)}" for name, command in commands.items()]
    return "\n".join([*lines, "", "facessl COMMAND --help tells the flags of each."])


def summary(command: Callable[..., int]) -> str:
    """First line of a docstring."""
    return (command.__doc__ or "").strip().splitlines()[0]


def device_of(name: str) -> str:
    """The device that is meant. Raises UnknownName, or ConfigError where torch does not see it."""
    from facessl import environment

    if name not in ("auto", "cpu", "cuda", "mps"):
        raise UnknownName("device", name, ("auto", "cpu", "cuda", "mps"))
    best = environment.default_device()
    if name in ("cuda", "mps") and name != best:
        raise ConfigError(f"device {name} was asked for, but torch sees none here: use --device auto")
    return best if name == "auto" else name


def list_skipped(skipped: list[tuple[str, str]]) -> None:
    """Tell the first (key, reason) of what was left out, on standard error."""
    for key, reason in skipped[:10]:
        print(f"skipped {key}: {reason}", file=sys.stderr)
    if len(skipped) > 10:
        print(f"... and {len(skipped) - 10} more", file=sys.stderr)
