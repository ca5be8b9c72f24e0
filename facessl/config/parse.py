"""Flags, recipes and plain values -> a command's configuration, by jsonargparse."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from facessl.config.finetune import FinetuneConfig
from facessl.config.flags import Parser, with_true
from facessl.config.recipes import read_recipe, refuse_foreign_commands
from facessl.config.run import RunConfig, flatten, merge, one_line, spelled, unscaled_rate, without_retired
from facessl.core import plugins
from facessl.core.errors import ConfigError, PluginError, UnknownName


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
        remarks: values so far -> what is added to the help of a setting, by its name.
        members: what a plug-in must have.
    """

    name: str
    config: type[Any]
    part: str
    default: str
    positional: Mapping[str, str]
    preset: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {}
    remarks: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda values: {}
    members: tuple[str, ...] = ("Args", "needs", "views", "mean", "std", "step", "after_step")

    @property
    def folder(self) -> str:
        """Folder of the plug-ins."""
        return f"{self.part}s"

    @property
    def alias(self) -> dict[str, str]:
        """Short flags and what they stand for."""
        return {self.part: f"{self.part}.name", "backbone": "backbone.name"}

    def plugin(self, name: str) -> Any:
        """The plug-in's class.

        Raises:
            UnknownName: there is none of that name.
            PluginError: it lacks members.
        """
        kind = plugins.find(self.folder, name)
        missing = [member for member in self.members if not hasattr(kind, member)]
        if missing:
            raise PluginError(
                f"facessl/{self.folder}/{name}.py: the class {kind.__name__} has no {', '.join(missing)}: "
                f"facessl/{self.folder}/base.py says what a {self.part} has"
            )
        return kind


def _published(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the published protocol of a task."""
    protocol = values.get("protocol") or FinetuneConfig.protocol
    task = FINETUNE.plugin(values["task"]["name"])
    if protocol not in task.defaults:
        trained = {p for t in plugins.names("tasks") for p in plugins.find("tasks", t).defaults}
        probed = plugins.names("evaluation.protocols")
        if protocol not in (every := {*probed, *trained}):
            raise UnknownName("protocol", protocol, every)
        raise ConfigError(
            f"protocol {protocol} does not train {values['task']['name']}: use {' or '.join(sorted(task.defaults))}"
            + (f", or `facessl probe --protocol {protocol}`" if protocol in probed else "")
        )
    defaults: Mapping[str, Any] = task.defaults[protocol]
    return defaults


def _augmentation(values: Mapping[str, Any]) -> Mapping[str, str]:
    """What `augment` changes, told in its help."""
    published = FINETUNE.plugin(values["task"]["name"]).augments[values.get("protocol") or FinetuneConfig.protocol]
    told = []
    for field in dataclasses.fields(published):
        value = getattr(published, field.name)
        if value != field.default:
            plain = list(value) if isinstance(value, tuple) else round(value, 4) if isinstance(value, float) else value
            told.append(f"{field.name}: {plain}")
    return {"augment": f"those of the protocol are {{{', '.join(told)}}}"}


_SOURCE = "NAME:PATH?option=value, or a path; none: synthetic faces (synthetic:)"
PRETRAIN = Command("pretrain", RunConfig, "method", "fra", {"source": _SOURCE})
FINETUNE = Command(
    "finetune",
    FinetuneConfig,
    "task",
    "expression",
    {
        "run": "run folder, checkpoint, exported backbone, or none (random weights)",
        "source": "labelled images, NAME:PATH?option=value or a path",
    },
    preset=_published,
    remarks=_augmentation,
    members=("Args", "needs", "defaults", "augments", "step", "after_step", "predict", "meter", "describe"),
)
#: Fields whose inner keys are free, or that are lists: they are checked where they are used.
_FREE = ("views", "backbone.options.", "augment", "optim.lrs")


def parse(argv: Sequence[str], *, base: Mapping[str, Any] | None = None, command: Command = PRETRAIN) -> Any:
    """Flags (and the recipes named by `--config`) -> the command's configuration; later ones win.

    Raises:
        ConfigError, UnknownName: one sentence with the value and the nearest valid name.
        SystemExit: after `--help` or `--print_config`.
    """
    values, rest = _sorted_out(argv, base or {}, command)
    config = _build(values, rest, command)
    refuse_foreign_commands(config, rest)
    if command is PRETRAIN:  # a recipe is made for another length and is not what was asked for
        config = dataclasses.replace(config, given=frozenset(w[2:].partition("=")[0] for w in rest))
    return config


def resumed(argv: Sequence[str], command: Command = PRETRAIN) -> dict[str, Any] | None:
    """The settings that a run began with, where `argv` asks to go on with one that is there.

    Raises:
        ConfigError: `argv` names another method or task than the run has, so that its flags would not fit.
    """
    values, rest = _sorted_out(argv, {}, command)
    out = _last_value(rest, "--out") or values.get("out")
    on = [w for w in rest if w.partition("=")[0] == "--resume"]
    if out is None or not (values.get("resume") or on) or on[-1:] == ["--resume=false"]:
        return None
    file = Path(out) / "config.yaml"
    if not file.is_file():
        return None
    try:
        kept: dict[str, Any] = yaml.safe_load(file.read_text())
        name = kept[command.part]["name"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        raise ConfigError(
            f"{file} is damaged, or is not of `facessl {command.name}`: start a new run with another --out"
        ) from None
    flag = f"{command.part}.name"
    asked = _last_value(rest, f"--{flag}") or (values.get(command.part) or {}).get("name")
    if asked not in (None, name):
        raise ConfigError(
            f"{out} was started with other settings ({flag}: {name!r} -> {asked!r}): resume with the old ones, or "
            "start a new run with another --out"
        )
    return kept


def rate_note(argv: Sequence[str], config: RunConfig) -> str | None:
    """A sentence where `argv` changes the batch of its recipe and the learning rate would have to follow by hand."""
    values, rest = _sorted_out(argv, {}, PRETRAIN)
    meant = values.get("batch_size")
    return None if meant is None or _last_value(rest, "--optim.lr") else unscaled_rate(config, meant)


def _sorted_out(argv: Sequence[str], base: Mapping[str, Any], command: Command) -> tuple[dict[str, Any], list[str]]:
    """Values of `base` and of the recipes in `argv`, and the other words with flags as the parser spells them."""
    values: dict[str, Any] = dict(base)
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
                "--views '[{scale: [0.08, 1.0], blur: 1.0}, {scale: [0.08, 1.0], blur: 0.1, solarize: 0.2}]'"
            )
        elif word.startswith("--"):
            rest.append("--" + key.replace("-", "_") + word[2 + len(key) :])
        else:
            rest.append(word)
    for key in command.alias:
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    return values, rest


def print_help(argv: Sequence[str], command: Command = PRETRAIN) -> None:
    """Print every flag of a command, with the values that the plug-in, protocol and recipe named in `argv` have."""
    values, rest = _sorted_out([w for w in argv if w not in ("-h", "--help")], {}, command)
    name, below = _plugin_and_preset(values, rest, command)
    parser = _parser(command.plugin(name).Args, command)
    used = merge(merge(below, values), {command.part: {"name": name}})
    remarks = command.remarks(used)
    for action in parser._actions:
        found = _lookup(used, action.dest)
        if found is None or (isinstance(found, Mapping) and not action.dest.startswith(_FREE)):
            found = action.default
        if found is not action.default or isinstance(found, tuple):
            parser.set_defaults({action.dest: list(found) if isinstance(found, tuple) else found})
        if action.dest in remarks:
            action.help = f"{str(action.help).removesuffix('.')}; {remarks[action.dest]}"
    others = ", ".join(n for n in plugins.names(command.folder) if n != name)
    protocol = f" --protocol {used['protocol']}" if used.get("protocol") else ""
    which = f"The {'defaults' if below else f'flags --{command.part}.*'} below are those of --{command.part} {name}"
    parser.description = (
        f"{parser.description} {which}{protocol}; they depend on the {command.part}: `facessl {command.name} "
        f"--{command.part} NAME --help` shows those of {others}."
    )
    print(parser.format_help(), end="")


def _plugin_and_preset(values: Mapping[str, Any], argv: Sequence[str], command: Command) -> tuple[str, dict[str, Any]]:
    """Name of the plug-in that is asked for, and the values that stand below what is asked for."""
    part, flag = command.part, f"--{command.part}.name"
    name = _last_value(argv, flag) or (values.get(part) or {}).get("name", command.default)
    chosen = {"protocol": v} if (v := _last_value(argv, "--protocol")) is not None else {}
    return name, {**command.preset({**values, **chosen, part: {"name": name}}), **chosen}


def _lookup(values: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def resolved(config: FinetuneConfig) -> dict[str, Any]:
    """Plain values of a fine-tuning configuration, with all of the protocol's crop and augmentation.

    Raises:
        UnknownName, ConfigError: a field of `augment` that there is not, or a value that it cannot have.
    """
    values = config.to_dict()
    published = FINETUNE.plugin(config.task["name"]).augments[config.protocol]
    known = dataclasses.asdict(published)
    for name in config.augment:
        if name not in known:
            raise UnknownName("field of augment", name, known)
    try:
        changed = {k: tuple(v) if isinstance(v, list) else v for k, v in config.augment.items()}
        values["augment"] = dataclasses.asdict(dataclasses.replace(published, **changed))
    except TypeError as error:
        raise ConfigError(f"augment {dict(config.augment)} has a value of the wrong kind: {error}") from None
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def from_dict(values: Mapping[str, Any], command: Command = PRETRAIN) -> Any:
    """A configuration from plain values, e.g. those of a run's `config.yaml`."""
    return _build(dict(values), [], command)


def _build(values: dict[str, Any], argv: list[str], command: Command) -> Any:
    values = copy.deepcopy(
        without_retired(values) if command is PRETRAIN else spelled(values)
    )  # the parser changes them
    for key in command.alias:
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    flag = f"{command.part}.name"
    name = _last_value(argv, f"--{flag}") or (values.get(command.part) or {}).get("name", command.default)
    _refuse_unknown(values, argv, _parser(plugins.settings(command.folder, name), command))
    given = frozenset([*flatten(values), *(w[2:].partition("=")[0] for w in argv if w.startswith("--"))])
    name, below = _plugin_and_preset(values, argv, command)
    parser = _parser(command.plugin(name).Args, command)
    parser.set_defaults({flag: name})
    values = merge(below, values)
    argv = with_true(argv, parser)
    try:
        defaults = parser.parse_object(values, defaults=True) if values else parser.get_defaults()
        parsed = parser.parse_args(argv, namespace=defaults) if argv else defaults
        parsed = parser.instantiate(parsed)
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(readable(error, parser)) from None
    fields = _fields(parsed, command)
    for key in command.positional:
        fields[key] = fields[key] or values.get(key) or getattr(command.config, key)
    if _has_given(command.config):
        fields["given"] = given
    return command.config(**fields)


def _refuse_unknown(values: Mapping[str, Any], argv: Sequence[str], parser: ArgumentParser) -> None:
    """A flag or setting that there is not is told before anything large is imported."""
    known = {a.dest for a in parser._actions}
    for word in (w.removeprefix("--").partition("=")[0] for w in argv if w.startswith("--")):
        if word not in known and not word.startswith((*_FREE, "help")):
            raise UnknownName("option", "--" + word.replace("_", "-"), _options(known, "--"))
    for key in flatten(values):
        if key not in known and not key.startswith(_FREE):
            raise UnknownName("setting", key, _options(known, ""))


def _parser(plugin_args: type[Any], command: Command) -> ArgumentParser:
    head = (command.config.__doc__ or "").split("\n")[0]
    usage = f"facessl {command.name} {' '.join(f'[{key.upper()}]' for key in command.positional)} [flags]"
    parser = Parser(prog=f"facessl {command.name}", usage=usage, description=head)
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
    hidden = {"given"} if _has_given(command.config) else set()
    parser.add_class_arguments(command.config, skip={*command.positional, part, *hidden}, as_group=False)
    parser.add_argument("--print_config", action="store_true", help="print the configuration and stop")
    for action in parser._actions:
        if action.dest in command.alias:
            action.metavar, action.help = "NAME", f"same as --{command.alias[action.dest]}"
        elif action.dest in ("optim", "monitor"):
            action.help = "all of its values as YAML"
    return parser


def _fields(parsed: Namespace, command: Command) -> dict[str, Any]:
    named = [f.name for f in dataclasses.fields(command.config) if f.name not in ("given", command.part)]
    values = {name: parsed[name] for name in named}
    arguments = dict(vars(parsed[command.part]))
    name = arguments.pop("name")
    checked = plugins.find(command.folder, name).Args(**arguments)
    return values | {command.part: {"name": name, **dataclasses.asdict(checked)}}


def _has_given(config: type[Any]) -> bool:
    """Whether a configuration keeps the names of the settings that were asked for."""
    return any(f.name == "given" for f in dataclasses.fields(config))


def _options(known: set[str], prefix: str) -> list[str]:
    return [prefix + k.replace("_", "-") if prefix else k for k in known if k not in ("help", "config")]


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


def _last_value(argv: Sequence[str], flag: str) -> str | None:
    """The value of `--flag value` or `--flag=value`, the last one of several."""
    found = [
        after if word == flag else word.partition("=")[2]
        for word, after in zip(argv, [*argv[1:], ""], strict=False)
        if word.partition("=")[0] == flag
    ]
    return found[-1] or None if found else None
