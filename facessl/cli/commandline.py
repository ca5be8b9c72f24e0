"""Shared by the commands: parsing, one-sentence errors, devices, help."""

import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError

from facessl.config.argument_parser import Parser, dashed, readable, underscored, with_null, with_true
from facessl.core import plugins
from facessl.core.errors import ConfigError, DataWarning, UnknownName


def call(name: str, command: Callable[..., int], argv: list[str]) -> int:
    """Run command `name` with its arguments; return the exit status."""
    if "argv" in inspect.signature(command).parameters:
        return command(argv)
    parser = Parser(prog=f"facessl {name}", description=summary(command))
    lists = [n for n, p in inspect.signature(command).parameters.items() if str(p.annotation).startswith("list[")]
    parser.add_function_arguments(command, as_positional=True, as_group=False, skip=set(lists))
    for field in lists:  # behind the other positional arguments, as in `facessl predict RUN PHOTO...`
        parser.add_argument(field, nargs="+", type=str, help="one or more")
    return command(**parsed_words(parser, argv, name))


def parsed_words(parser: Parser, argv: list[str], name: str) -> dict[str, Any]:
    """Values of the flags of command `name`. ConfigError, UnknownName: a flag or value that is not valid."""
    argv = with_null(with_true([underscored(w) for w in argv], parser), parser)
    known = {a.dest for a in parser._actions}
    for flag in (w[2:].partition("=")[0] for w in argv if w.startswith("--")):
        if flag not in known:
            raise UnknownName("option", dashed(flag), map(dashed, known))
    try:
        parsed = parser.instantiate(parser.parse_args(argv))
    except ArgumentError as error:
        raise ConfigError(f"{readable(error, parser)} (see facessl {name} --help)") from None
    return {k: v for k, v in vars(parsed).items() if k != "config"}


#: Flags of `facessl probe` that every protocol has.
_PROBE = ("help", "protocol", "test", "val", "labels", "baseline", "threads", "device", "out")


def refuse_other_protocols(argv: list[str], name: str) -> None:
    """Raise UnknownName or ConfigError for a flag that protocol `name` does not have. Imports no torch."""
    own = plugins.keywords("evaluation.protocols", name)
    for flag in (underscored(w)[2:].partition("=")[0] for w in argv if w.startswith("--")):
        if flag in own or flag in _PROBE:
            continue
        every = plugins.names("evaluation.protocols")
        if others := [p for p in every if flag in plugins.keywords("evaluation.protocols", p)]:
            raise ConfigError(
                f"{dashed(flag)} belongs to {' and '.join(others)}, not to {name}: leave it out, or use --protocol "
                f"{others[0]}"
            )
        raise UnknownName("option", dashed(flag), map(dashed, {*own, *_PROBE}))


def listed(what: str, part: str = "") -> list[tuple[str, str]]:
    """(name, summary) of the methods, sources, tasks, protocols or recipes with `part` in their names."""
    if what == "recipes":
        from facessl.config.recipes import recipe_summary, recipes

        return [(name, recipe_summary(name)) for name in recipes() if part in name]
    folder = {"sources": "data.sources", "protocols": "evaluation.protocols"}.get(what, what)
    summaries = {name.replace("_", "-"): plugins.summary(folder, name) for name in plugins.names(folder)}
    if what == "methods":
        summaries = {name: f"{text} Default: {_training(name)}." for name, text in summaries.items()}
    if what == "protocols":
        defaults = {task: plugins.find("tasks", task).defaults for task in plugins.names("tasks")}
        for protocol in dict.fromkeys(name for protocols in defaults.values() for name in protocols):
            tasks = ", ".join(task for task, protocols in defaults.items() if protocol in protocols)
            summaries[protocol] = f"`facessl finetune --protocol {protocol}`: {tasks}"
    return [(name, text) for name, text in summaries.items() if part in name]


def _training(method: str) -> str:
    """Default backbone, optimizer and learning rate of a method."""
    from facessl.config.commands import PRETRAIN
    from facessl.config.pretrain import PretrainConfig
    from facessl.config.run import merge

    settings = merge(PretrainConfig().to_dict(), PRETRAIN.preset({"method": {"name": method}}))
    optim = settings["optim"]
    batch = f" per {optim['reference_batch']} images" if optim["reference_batch"] else ""
    return f"{settings['backbone']['name']}, {optim['name']}, lr {optim['lr']:g}{batch}"


def overview(commands: dict[str, Callable[..., int]]) -> str:
    """Text of `facessl --help`."""
    lines = ["Face representations learned without labels.", "", "usage: facessl COMMAND ...", ""]
    lines += [f"  {name:10} {summary(command)}" for name, command in commands.items()]
    return "\n".join([*lines, "", "facessl COMMAND --help tells the flags of each."])


def one_sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Text of a warning, with its place unless it is a `DataWarning`."""
    if issubclass(category, DataWarning):
        return f"facessl: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def thread_error(error: threading.ExceptHookArgs) -> None:
    """Print an error that ends a thread, but no OSError, which the main thread reports."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


def summary(command: Callable[..., int]) -> str:
    """First line of a docstring."""
    return (command.__doc__ or "").strip().splitlines()[0]


def computing_device(name: str, threads: int | None) -> str:
    """Set the number of CPU threads, with a hint if it is too large; return the device of `name`."""
    from facessl.core import environment

    if hint := environment.use_threads(threads, name):
        print(hint, file=sys.stderr)
    return environment.device_of(name)


def list_skipped(skipped: list[tuple[str, str]]) -> None:
    """Print the first (key, reason) of skipped images to standard error."""
    from facessl.core.escape import printable_lines

    for key, reason in skipped[:10]:
        print(f"skipped {printable_lines(f'{key}: {reason}')}", file=sys.stderr)
    if len(skipped) > 10:
        print(f"... and {len(skipped) - 10} more", file=sys.stderr)
