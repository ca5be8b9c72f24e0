"""What the commands share: reading their words, one sentence for a wrong one, devices, help."""

import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError

from facessl.config.parser import Parser, dashed, readable, with_true
from facessl.core import plugins
from facessl.core.errors import ConfigError, DataWarning, UnknownName


def call(name: str, command: Callable[..., int], words: list[str]) -> int:
    """Run command `name` with the words behind it; returns the exit status."""
    if "argv" in inspect.signature(command).parameters:
        return command(words)
    parser = Parser(prog=f"facessl {name}", description=summary(command))
    lists = [n for n, p in inspect.signature(command).parameters.items() if str(p.annotation).startswith("list[")]
    parser.add_function_arguments(command, as_positional=True, as_group=False, skip=set(lists))
    for many in lists:  # behind the other positional words, as in `facessl predict RUN PHOTO...`
        parser.add_argument(many, nargs="+", type=str, help="one or more")
    return command(**parsed_words(parser, words, name))


def parsed_words(parser: Parser, words: list[str], name: str) -> dict[str, Any]:
    """Values of the flags of command `name`; a wrong one is one sentence."""
    words = with_true([_underscored(w) for w in words], parser)
    known = {a.dest for a in parser._actions}
    for flag in (w[2:].partition("=")[0] for w in words if w.startswith("--")):
        if flag not in known:
            raise UnknownName("option", dashed(flag), map(dashed, known))
    try:
        parsed = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise ConfigError(f"{readable(error, parser)} (see facessl {name} --help)") from None
    return {k: v for k, v in vars(parsed).items() if k != "config"}


#: Flags of `facessl probe` that every protocol has.
_PROBE = ("help", "protocol", "test", "val", "labels", "baseline", "threads", "device", "out")


def refuse_other_protocols(argv: list[str], name: str) -> None:
    """UnknownName or ConfigError for a flag of `facessl probe` that the protocol does not have. Imports no torch."""
    own = plugins.keywords("evaluation.protocols", name)
    for flag in (_underscored(w)[2:].partition("=")[0] for w in argv if w.startswith("--")):
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
    """Names with `part` in them and what each is, of methods, sources, tasks, protocols or recipes."""
    if what == "recipes":
        from facessl.config.recipes import recipe_summary, recipes

        return [(name, recipe_summary(name)) for name in recipes() if part in name]
    folder = {"sources": "data.sources", "protocols": "evaluation.protocols"}.get(what, what)
    found = [(name, plugins.summary(folder, name)) for name in plugins.names(folder)]
    if what == "sources":
        found = [(name.replace("_", "-"), told) for name, told in found]
    if what == "protocols":
        tasks = {task: plugins.find("tasks", task).defaults for task in plugins.names("tasks")}
        for trained in dict.fromkeys(protocol for own in tasks.values() for protocol in own):
            having = ", ".join(task for task, own in tasks.items() if trained in own)
            found.append((trained, f"`facessl finetune --protocol {trained}`: {having}"))
    return [pair for pair in found if part in pair[0]]


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


def one_sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What a warning prints: of ours the sentence, of others' the place, too."""
    told = f"facessl: {message}\n"
    return told if issubclass(category, DataWarning) else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def thread_error(told: threading.ExceptHookArgs) -> None:
    """What an error that ends a thread prints: nothing of a disk, which the main thread hears of and tells."""
    if not issubclass(told.exc_type, OSError):
        threading.__excepthook__(told)


def summary(command: Callable[..., int]) -> str:
    """First line of a docstring."""
    return (command.__doc__ or "").strip().splitlines()[0]


def computing_device(name: str, threads: int | None) -> str:
    """The device that is meant, after the number of CPU threads is set and told where there are too many."""
    from facessl.core import environment

    if hint := environment.use_threads(threads, name):
        print(hint, file=sys.stderr)
    return environment.device_of(name)


def list_skipped(skipped: list[tuple[str, str]]) -> None:
    """Tell the first (key, reason) of what was left out, on standard error."""
    from facessl.core.tables import printable_lines

    for key, reason in skipped[:10]:
        print(f"skipped {printable_lines(f'{key}: {reason}')}", file=sys.stderr)
    if len(skipped) > 10:
        print(f"... and {len(skipped) - 10} more", file=sys.stderr)
