"""Flags, recipes and plain values -> `RunConfig`, by jsonargparse."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from facessl import plugins
from facessl.config import RunConfig, flatten, merge, one_line, read_recipe
from facessl.errors import ConfigError, UnknownName

_ALIAS = {"method": "method.name", "backbone": "backbone.name"}


def parse(argv: Sequence[str], *, base: Mapping[str, Any] | None = None) -> RunConfig:
    """Flags (and the recipes named by `--config`) -> RunConfig; later ones win.

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
        elif word.startswith("--") and key in _ALIAS:
            rest += [f"--{_ALIAS[key]}", value or next(words, "")]
        elif key.startswith("views."):
            raise ConfigError(
                f"--{key} cannot be set alone: views is a list, one entry per view; give all of it, in a recipe or as "
                "--views '[{scale: [0.08, 1.0], blur: 1.0}, {scale: [0.08, 1.0], blur: 0.1, solarise: 0.2}]'"
            )
        elif word.startswith("--"):
            rest.append("--" + key.replace("-", "_") + word[2 + len(key) :])
        else:
            rest.append(word)
    return _build(values, rest)


def print_help(argv: Sequence[str]) -> None:
    """Print every flag of `facessl pretrain`, with those of the method named in `argv`."""
    words = [w.replace("--method=", "--method.name=") for w in argv]
    name = _last_value([w if w != "--method" else "--method.name" for w in words], "--method.name") or "fra"
    _parser(plugins.find("methods", name).Args).print_help()


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """A configuration from plain values, e.g. those of a run's `config.yaml`."""
    return _build(dict(values), [])


def _build(values: dict[str, Any], argv: list[str]) -> RunConfig:
    values = copy.deepcopy(values)  # the parser changes what it is given
    for key in _ALIAS:
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    name = _last_value(argv, "--method.name") or (values.get("method") or {}).get("name", "fra")
    parser = _parser(plugins.find("methods", name).Args)
    parser.set_defaults({"method.name": name})
    known = {a.dest for a in parser._actions}
    argv = with_true(argv, parser)
    for flag in (w.removeprefix("--").partition("=")[0] for w in argv if w.startswith("--")):
        if flag not in known and flag.split(".")[0] not in ("views", "help"):
            raise UnknownName("option", "--" + flag.replace("_", "-"), _options(known, "--"))
    for key in flatten(values):
        if key not in known and not key.startswith(("views", "backbone.options.")):
            raise UnknownName("setting", key, _options(known, ""))
    try:
        defaults = parser.parse_object(values, defaults=True) if values else parser.get_defaults()
        parsed = parser.parse_args(argv, namespace=defaults) if argv else defaults
        parsed = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ConfigError(readable(error)) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(readable(error)) from None
    fields = _fields(parsed)
    return RunConfig(**fields | {"source": fields["source"] or values.get("source") or RunConfig.source})


def _parser(method_args: type[Any]) -> ArgumentParser:
    head = (RunConfig.__doc__ or "").split("\n")[0]
    usage = "facessl pretrain [SOURCE] [flags]"
    parser = ArgumentParser(prog="facessl pretrain", usage=usage, exit_on_error=False, description=head)
    parser.add_argument(
        "source",
        nargs="?",
        default=None,
        help="NAME:PATH?option=value, or a path; none: drawn faces (synthetic:)",
    )
    parser.add_argument("--config", help="recipe (YAML file, or a name of `facessl list recipes`)")
    parser.add_argument(
        "--method.name", default="fra", help=f"one of {', '.join(plugins.names('methods'))}; also --method"
    )
    parser.add_class_arguments(method_args, "method", instantiate=False)
    parser.add_class_arguments(RunConfig, skip={"source", "method"}, as_group=False)
    parser.add_argument("--print_config", action="store_true", help="print the configuration and stop")
    for action in parser._actions:
        if action.dest in _ALIAS:
            action.metavar, action.help = "NAME", f"same as --{_ALIAS[action.dest]}"
        elif action.dest in ("optim", "monitor"):
            action.help = "all of its values as YAML"
    return parser


def _fields(parsed: Namespace) -> dict[str, Any]:
    values = {f.name: parsed[f.name] for f in dataclasses.fields(RunConfig) if f.name != "method"}
    arguments = dict(vars(parsed["method"]))
    name = arguments.pop("name")
    checked = plugins.find("methods", name).Args(**arguments)
    return values | {"method": {"name": name, **dataclasses.asdict(checked)}}


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
