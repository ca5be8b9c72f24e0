"""Command lines, recipes and plain values -> a command's configuration.

`read` sorts the flags by their dotted names, reads the recipes and the resumed run, and picks the method, whose `Args`
become flags. `configuration` merges the published values of the method or protocol, those of the resumed run, the
recipes and the flags, later ones on top, and has jsonargparse check all types; `Args` and the command's dataclass check
the ranges.
"""

import contextlib
import copy
import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from jsonargparse import ArgumentError

from facessl.config.argument_parser import Parser, dashed, extra_word, is_null, readable, underscored, with_true
from facessl.config.commands import PRETRAIN, Command, resolved
from facessl.config.finetune import FinetuneConfig
from facessl.config.pretrain import PretrainConfig, unscaled_rate
from facessl.config.recipes import read_recipe, refuse_foreign_commands
from facessl.config.run import RunConfig, flatten, merge, to_plain
from facessl.core import plugins
from facessl.core.errors import ConfigError, PluginError, UnknownName
from facessl.core.yaml_file import parse_yaml, read_yaml

#: Fields whose inner keys are free, or that are lists: they are checked where they are used.
_FREE = ("views", "backbone.options.", "augment", "optim.lrs")
#: Flags that are no settings and may stand alone.
_SWITCHES = ("help", "print_config", *PRETRAIN.switches)
#: Flags of the command line alone.
_NO_SETTINGS = {"config", "views.help", *_SWITCHES}


@dataclass(frozen=True)
class ParsedArguments:
    """A command line, sorted."""

    command: Command
    name: str  # of the method or task
    parser: Parser  # with all flags of the command, those of the method or task too
    flags: dict[str, str]  # texts by dotted names; positional words have the name of their field
    recipe: dict[str, Any]  # values of the recipes, later ones on top
    saved: dict[str, Any]  # settings of the resumed run
    # help, print_config: only the help or the configuration is wanted.
    help: bool
    print_config: bool
    crop: bool  # the source is photos whose faces are to be cropped first

    @property
    def values(self) -> dict[str, Any]:
        """Plain values by name, nested; those of flags are still texts."""
        values = merge(self.saved, self.recipe)
        for name, text in self.flags.items():
            value: Any = text
            if name in self.command.groups and text.lstrip().startswith("{"):
                with contextlib.suppress(ConfigError):  # the text itself is refused later
                    value = parse_yaml(text, name)
            values = merge(values, _nested(name, value))
        return values


def parse(argv: Sequence[str], command: Command = PRETRAIN) -> Any:
    """Flags (and the recipes named by `--config`) -> the command's configuration; later ones win. Raises as `read`."""
    return configuration(read(argv, command))


def read(argv: Sequence[str], command: Command = PRETRAIN) -> ParsedArguments:
    """Sort the words of a command line. Imports no torch, as that takes seconds.

    ConfigError, UnknownName: an unknown flag or setting, or a recipe or run that cannot be read.
    """
    argv = ["--help" if word == "-h" else underscored(word) for word in argv]
    words = list(_words(argv, command))
    recipe: dict[str, Any] = {}
    for flag, text in words:
        if flag == "config":
            recipe = merge(recipe, _named(read_recipe(text or ""), command))
    last = dict(words)
    resume = str(last["resume"]).lower() not in ("false", "no") if "resume" in last else recipe.get("resume")
    out = last.get("out") or recipe.get("out")
    saved = _saved_settings(Path(out), command) if resume and out else {}
    part = f"{command.part}.name"
    name = last[part] or "" if part in last else recipe.get(command.part, {}).get("name")
    name = name and plugins.known(command.folder, str(name))
    saved_name = saved.get(command.part, {}).get("name")
    if name is not None and saved_name not in (None, name):
        raise ConfigError(
            f"{out} was started with other settings ({part}: {saved_name!r} -> {name!r}): resume with the old ones, or "
            "start a new run with another --out"
        )
    name = name if name is not None else saved_name or command.default
    parser = _parser(name, command)
    flags = _flags(_words(with_true(argv, parser, _SWITCHES), command), parser, command)
    switches = [flags.pop(name, "false").lower() in ("true", "yes") for name in _SWITCHES]
    return ParsedArguments(command, name, parser, flags, recipe, saved, *switches)


def _words(argv: Sequence[str], command: Command) -> Iterator[tuple[str | None, str | None]]:
    """(dotted name, text) of each flag; the name of a positional word and the text of a bare flag are None."""
    short = {command.part: f"{command.part}.name", "backbone": "backbone.name"}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            yield None, word
            continue
        name, equals, text = word[2:].partition("=")
        if name.startswith("views."):
            raise ConfigError(
                f"--{name} cannot be set alone: views is a list, one entry per view; give all of it, in a recipe or as "
                "--views '[{scale: [0.08, 1.0], blur: 1.0}, {scale: [0.08, 1.0], blur: 0.1, solarize: 0.2}]'"
            )
        follows = not equals and rest and not rest[0].startswith("--")
        yield short.get(name, name), text if equals else rest.pop(0) if follows else None


def _flags(words: Iterator[tuple[str | None, str | None]], parser: Parser, command: Command) -> dict[str, str]:
    """Texts by dotted names. ConfigError, UnknownName: a word that the command does not have."""
    flags: dict[str, str] = {}
    known = {action.dest for action in parser._actions}
    positional = iter(command.positional)
    for flag, text in words:
        if flag is None:
            field = next(positional, None)
            if field is None or re.match(r"-(?!\d)", str(text)):
                raise ConfigError(extra_word(str(text), parser))
            if text:
                flags[field] = text
        elif flag not in known and not flag.startswith(_FREE):
            raise UnknownName("option", dashed(flag), map(dashed, known - _NO_SETTINGS))
        elif text is None:
            raise ConfigError(f"{dashed(flag)} needs a value: write it behind the flag")
        elif flag != "config":
            flags[flag] = text
    return flags


def _saved_settings(folder: Path, command: Command) -> dict[str, Any]:
    """Settings that the run in `folder` began with; {} before its beginning."""
    file = folder / "config.yaml"
    if not file.is_file():
        return {}
    try:
        settings: dict[str, Any] = read_yaml(file)
        settings[command.part]["name"]
    except (ConfigError, KeyError, TypeError):
        raise ConfigError(
            f"{file} is damaged, or is not of `facessl {command.name}`: start a new run with another --out"
        ) from None
    return settings


def _parser(name: str, command: Command) -> Parser:
    usage = f"facessl {command.name} {' '.join(f'[{key.upper()}]' for key in command.positional)} [flags]"
    head = (command.config.__doc__ or "").split("\n")[0]
    parser = Parser(prog=f"facessl {command.name}", usage=usage, description=head)
    for key, text in command.positional.items():
        parser.add_argument(key, nargs="?", default=getattr(command.config, key) or None, help=text)
    parser.add_argument("--config", help="recipe (YAML file, or a name of `facessl list recipes`)")
    part = command.part
    which = f"one of {', '.join(plugins.names(command.folder))}; also --{part}"
    parser.add_argument(f"--{part}.name", default=name, help=which)
    parser.add_class_arguments(plugins.settings(command.folder, str(name)), part, instantiate=False)
    own = set(command.config.__annotations__)
    hidden = {*command.positional, part, "explicit"}
    parser.add_class_arguments(RunConfig, skip={*hidden, *own}, as_group=False)
    inherited = {field.name for field in dataclasses.fields(RunConfig)} - own
    parser.add_class_arguments(command.config, skip={*hidden, *inherited}, as_group=False)
    for key, text in command.switches.items():
        parser.add_argument(f"--{key}", action="store_true", help=text)
    parser.add_argument("--print_config", action="store_true", help="print the configuration and stop")
    for action in parser._actions:
        if action.dest in (part, "backbone"):
            action.metavar, action.help = "NAME", f"same as --{action.dest}.name"
        elif action.dest in ("optim", "monitor"):
            action.help = "all of its values as YAML"
    return parser


def configuration(arguments: ParsedArguments) -> Any:
    """The configuration of a command line. ConfigError, UnknownName: a value that is not valid."""
    explicit = {**flatten(arguments.values)} if arguments.command.recipes_are_explicit else arguments.flags
    config = _build(arguments.values, arguments.name, arguments.parser, arguments.command, explicit)
    refuse_foreign_commands(config, list(arguments.flags.values()))
    return config


def from_dict(values: Mapping[str, Any], command: Command = PRETRAIN) -> Any:
    """Configuration from plain values, such as those of a run's `config.yaml`, or with path objects for texts."""
    values = _named(to_plain(values), command)
    name = plugins.known(command.folder, str(values.get(command.part, {}).get("name", command.default)))
    return _build(values, name, _parser(name, command), command, flatten(values))


def _build(values: dict[str, Any], name: str, parser: Parser, command: Command, explicit: Mapping[str, Any]) -> Any:
    actions = [action for action in parser._actions if action.dest not in _NO_SETTINGS]
    known = {action.dest: getattr(action, "_typehint", action.type) for action in actions}
    for key in [key for key, value in flatten(values).items() if is_null(value, known.get(key))]:
        values = merge(values, _nested(key, None))
    for key, value in flatten(values).items():
        kind = known.get(key)
        if value is None and kind is not None and NoneType not in typing.get_args(kind):
            raise ConfigError(f"{key} = null is not valid: give a value, or leave it out")
        if key in command.groups and value != {}:
            raise ConfigError(f"{key} = {value!r} is not valid: give names and values, such as '{{name: value}}'")
        if key not in known and not key.startswith(_FREE):
            raise UnknownName("setting", key, known)
    preset = command.preset({**values, command.part: {"name": name}})
    if unknown := [key for key in flatten(preset) if key not in known and not key.startswith(_FREE)]:
        raise PluginError(
            f"{command.part} {name}: defaults has {unknown[0]}, which is not a setting: rename or remove it"
        )
    values = merge(preset, values)
    try:
        parsed = parser.instantiate(parser.parse_object(copy.deepcopy(values), defaults=True))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(readable(error, parser)) from None
    named = {field.name for field in dataclasses.fields(command.config)} - {"explicit", command.part}
    fields = {field: parsed[field] for field in named if parsed[field] is not None}
    arguments = {key: value for key, value in vars(parsed[command.part]).items() if key != "name"}
    args = plugins.settings(command.folder, name)(**arguments)
    fields[command.part] = {"name": name, **dataclasses.asdict(args)}
    return command.config(**fields, explicit=frozenset(explicit))


def _named(values: dict[str, Any], command: Command) -> dict[str, Any]:
    """`method: fra` is short for `method: {name: fra}`, and `backbone` likewise."""
    for key in (command.part, "backbone"):
        if key in values and not isinstance(values[key], Mapping):
            values[key] = {"name": values[key]}
    return values


def help_or_configuration(arguments: ParsedArguments) -> str:
    """Text of --help or --print-config; "" without them."""
    if arguments.help:
        return _help(arguments)
    if not arguments.print_config:
        return ""
    config = configuration(arguments)
    values = resolved(config) if isinstance(config, FinetuneConfig) else config.to_dict()
    return yaml.safe_dump(values, sort_keys=False)


def _help(arguments: ParsedArguments) -> str:
    """Every flag of a command, with the defaults of the plug-in, protocol and recipe."""
    command, name, parser = arguments.command, arguments.name, arguments.parser
    values = merge(arguments.values, {command.part: {"name": name}})
    used = merge(command.preset(values), values)
    remarks = command.remarks(used)
    for action in parser._actions:
        value = _lookup(used, action.dest)
        if value is None or action.dest in {*command.groups, command.part}:
            value = action.default
        if value is not action.default or isinstance(value, tuple):
            parser.set_defaults({action.dest: list(value) if isinstance(value, tuple) else value})
        if action.dest in remarks:
            action.help = f"{str(action.help).removesuffix('.')}; {remarks[action.dest]}"
    others = ", ".join(n for n in plugins.names(command.folder) if n != name)
    protocol = f" --protocol {used['protocol']}" if used.get("protocol") else ""
    which = f"The flags and defaults below are those of --{command.part} {name}"
    parser.description = (
        f"{parser.description} {which}{protocol}; they depend on the {command.part}: `facessl {command.name} "
        f"--{command.part} NAME --help` shows those of {others}."
    )
    return parser.format_help()


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    """`value` under a dotted name: optim.lr -> {"optim": {"lr": value}}."""
    *outer, last = dotted.split(".")
    found = {last: value}
    for key in reversed(outer):
        found = {key: found}
    return found


def _lookup(values: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def rate_note(arguments: ParsedArguments, config: PretrainConfig) -> str | None:
    """A warning if flags change a recipe's batch size but not its learning rate, which is not scaled."""
    recipe_batch = arguments.recipe.get("batch_size")
    return None if recipe_batch is None or "optim.lr" in arguments.flags else unscaled_rate(config, recipe_batch)
