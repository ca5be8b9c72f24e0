"""Flags, recipes and plain values -> a command's configuration, by jsonargparse."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from facessl import plugins
from facessl.config import RunConfig, flatten, merge, one_line, read_recipe
from facessl.errors import ConfigError, UnknownName


@dataclass(frozen=True)
class Command:
    """What differs between the commands that read a configuration.

    Attributes:
        name: of the command.
        config: its dataclass.
        part: the field that holds a plug-in's name and values ("method", "task").
        default: the plug-in that stands there when none is named.
        positional: fields given without a flag, with their help.
        preset: values so far -> values that stand below them (a protocol's published settings).
    """

    name: str
    config: type[Any]
    part: str
    default: str
    positional: Mapping[str, str]
    preset: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {}

    @property
    def folder(self) -> str:
        """Folder of the plug-ins."""
        return f"{self.part}s"

    @property
    def alias(self) -> dict[str, str]:
        """Short flags and what they stand for."""
        return {self.part: f"{self.part}.name", "backbone": "backbone.name"}


_SOURCE = "NAME:PATH?option=value, or a path; none: drawn faces (synthetic:)"
PRETRAIN = Command("pretrain", RunConfig, "method", "fra", {"source": _SOURCE})
#: Fields whose inner keys are free, or that are lists: they are checked where they are used.
_FREE = ("views", "backbone.options.", "augment", "optim.lrs")


def parse(argv: Sequence[str], *, base: Mapping[str, Any] | None = None, command: Command = PRETRAIN) -> Any:
    """Flags (and the recipes named by `--config`) -> the command's configuration; later ones win.

    Raises:
        ConfigError, UnknownName: one sentence with the value and the nearest valid name.
        SystemExit: after `--help` or `--print_config`.
    """
    values: dict[str, Any] = dict(base or {})
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and key == "config":
            values = merge(values, read_recipe(value or next(words, "")))
        elif word.startswith("--") and key in command.alias:
            rest += [f"--{command.alias[key]}", value or next(words, "")]
        elif key.startswith("views."):
            raise ConfigError(
                f"--{key} cannot be set alone: views is a list, one entry per view; give all of it, in a recipe or as "
                "--views '[{scale: [0.08, 1.0], blur: 1.0}, {scale: [0.08, 1.0], blur: 0.1, solarise: 0.2}]'"
            )
        elif word.startswith("--"):
            rest.append("--" + key.replace("-", "_") + word[2 + len(key) :])
        else:
            rest.append(word)
    return _build(values, rest, command)


def print_help(argv: Sequence[str], command: Command = PRETRAIN) -> None:
    """Print every flag of a command, with those of the plug-in named in `argv`."""
    flag = f"--{command.part}"
    words = [w.replace(f"{flag}=", f"{flag}.name=") for w in argv]
    name = _last_value([w if w != flag else f"{flag}.name" for w in words], f"{flag}.name") or command.default
    _parser(plugins.find(command.folder, name).Args, command).print_help()


def from_dict(values: Mapping[str, Any], command: Command = PRETRAIN) -> Any:
    """A configuration from plain values, e.g. those of a run's `config.yaml`."""
    return _build(dict(values), [], command)


def _build(values: dict[str, Any], argv: list[str], command: Command) -> Any:
    values = copy.deepcopy(values)  # the parser changes what it is given
    for key in command.alias:
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    flag = f"{command.part}.name"
    name = _last_value(argv, f"--{flag}") or (values.get(command.part) or {}).get("name", command.default)
    parser = _parser(plugins.find(command.folder, name).Args, command)
    parser.set_defaults({flag: name})
    chosen = {k: v for k in ("protocol",) if (v := _last_value(argv, f"--{k}")) is not None}
    values = merge(command.preset({**values, **chosen, command.part: {"name": name}}), values)
    known = {a.dest for a in parser._actions}
    argv = with_true(argv, parser)
    for word in (w.removeprefix("--").partition("=")[0] for w in argv if w.startswith("--")):
        if word not in known and not word.startswith((*_FREE, "help")):
            raise UnknownName("option", "--" + word.replace("_", "-"), _options(known, "--"))
    for key in flatten(values):
        if key not in known and not key.startswith(_FREE):
            raise UnknownName("setting", key, _options(known, ""))
    try:
        defaults = parser.parse_object(values, defaults=True) if values else parser.get_defaults()
        parsed = parser.parse_args(argv, namespace=defaults) if argv else defaults
        parsed = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ConfigError(readable(error)) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(readable(error)) from None
    fields = _fields(parsed, command)
    for key in command.positional:
        fields[key] = fields[key] or values.get(key) or getattr(command.config, key)
    return command.config(**fields)


def _parser(plugin_args: type[Any], command: Command) -> ArgumentParser:
    head = (command.config.__doc__ or "").split("\n")[0]
    usage = f"facessl {command.name} {' '.join(f'[{key.upper()}]' for key in command.positional)} [flags]"
    parser = ArgumentParser(prog=f"facessl {command.name}", usage=usage, exit_on_error=False, description=head)
    for key, text in command.positional.items():
        parser.add_argument(key, nargs="?", default=None, help=text)
    parser.add_argument("--config", help="recipe (YAML file, or a name of `facessl list recipes`)")
    part = command.part
    parser.add_argument(
        f"--{part}.name",
        default=command.default,
        help=f"one of {', '.join(plugins.names(command.folder))}; also --{part}",
    )
    parser.add_class_arguments(plugin_args, part, instantiate=False)
    parser.add_class_arguments(command.config, skip={*command.positional, part}, as_group=False)
    parser.add_argument("--print_config", action="store_true", help="print the configuration and stop")
    for action in parser._actions:
        if action.dest in command.alias:
            action.metavar, action.help = "NAME", f"same as --{command.alias[action.dest]}"
        elif action.dest in ("optim", "monitor"):
            action.help = "all of its values as YAML"
    return parser


def _fields(parsed: Namespace, command: Command) -> dict[str, Any]:
    values = {f.name: parsed[f.name] for f in dataclasses.fields(command.config) if f.name != command.part}
    arguments = dict(vars(parsed[command.part]))
    name = arguments.pop("name")
    checked = plugins.find(command.folder, name).Args(**arguments)
    return values | {command.part: {"name": name, **dataclasses.asdict(checked)}}


def _options(known: set[str], prefix: str) -> list[str]:
    return [prefix + k.replace("_", "-") if prefix else k for k in known if k not in ("help", "config")]


def readable(error: Exception) -> str:
    """The parser's complaint in one sentence a person can act on."""
    text = one_line(str(error))
    found = re.search(r'[Pp]arser key "([^"]+)": (.*?)(?:Got value|Given value): (.*)$', text)
    if not found:
        return text
    key, middle, value = found.groups()
    kinds = [k.strip(" .") for k in re.findall(r"Expected an? (.+?)(?= - |\. |\.$| Given|$)", middle)]
    choices = [
        re.sub(r"^(typing\.)?Literal\[(.+)\]$", r"one of \2", re.sub(r"<class '(.+?)'>", r"\1", k)) for k in kinds
    ]
    plain = {"NoneType": "null", "float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}
    wanted = " or ".join(plain.get(c, c) for c in dict.fromkeys(choices))
    return f"{key} = {value!r} is not valid: give {wanted}"


def with_true(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """`--resume` means `--resume true`, as people expect of a switch."""
    switches = {f"--{a.dest}" for a in parser._actions if getattr(a, "_typehint", None) is bool}
    out = []
    for word, after in zip(argv, [*argv[1:], ""], strict=False):
        bare = word in switches and after.lower() not in ("true", "false", "yes", "no")
        out.append(f"{word}=true" if bare else word)
    return out


def _last_value(argv: Sequence[str], flag: str) -> str | None:
    found = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == flag]
    return found[-1] if found else None
