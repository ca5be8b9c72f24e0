"""The two commands that read a configuration."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from facessl.config.finetune import FinetuneConfig
from facessl.config.optim import PretrainOptim
from facessl.config.pretrain import PretrainConfig
from facessl.config.run import RunConfig, to_plain
from facessl.core import plugins
from facessl.core.errors import ConfigError, PluginError, UnknownName


@dataclass(frozen=True)
class Command:
    """A command that reads a configuration."""

    name: str
    config: type[RunConfig]
    part: str  # field with a plug-in's name and values ("method", "task")
    default: str  # name of the default plug-in
    positional: Mapping[str, str]  # fields without a flag, with their help
    recipes_are_explicit: bool  # whether the values of a recipe are explicit (`RunConfig.explicit`)
    # values -> defaults below them (the published settings of a method or protocol)
    preset: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {}
    # values -> additions to the help, by setting
    remarks: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda values: {}
    switches: Mapping[str, str] = field(default_factory=dict)  # flags that are no settings, with their help

    @property
    def folder(self) -> str:
        """Folder of the plug-ins."""
        return f"{self.part}s"

    @property
    def groups(self) -> set[str]:
        """Fields that are dataclasses."""
        return {f.name for f in dataclasses.fields(self.config) if dataclasses.is_dataclass(f.default_factory)}


def _of_method(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Published settings of a method, those of its optimizer and backbone only if no other one is chosen."""
    published = plugins.defaults("methods", values["method"]["name"])
    chosen = {}
    for part in ("optim", "backbone"):
        if not isinstance(published.get(part, {}), Mapping):
            raise PluginError(
                f"method {values['method']['name']}: {part} = {published[part]!r} in its defaults is not valid: give "
                "names and values, such as {'name': 'value'}"
            )
        given = values.get(part)
        chosen[part] = given.get("name") if isinstance(given, Mapping) else None
    optim = published.get("optim", {})
    own = optim.get("name", PretrainOptim.name)
    name = chosen["optim"] or own
    optim = {**PretrainOptim.defaults.get(name, {}), **(optim if name == own else {})}
    rest = {key: value for key, value in published.items() if key != "optim" and not chosen.get(key)}
    return {**rest, "optim": optim} if optim else rest


def _published(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Published settings of a task's protocol."""
    protocol = values.get("protocol") or FinetuneConfig.protocol
    task = plugins.find("tasks", values["task"]["name"])
    if protocol not in task.defaults:
        probes = plugins.names("evaluation.protocols")
        known = {*probes, *(p for t in plugins.names("tasks") for p in plugins.find("tasks", t).defaults)}
        if protocol not in known:
            raise UnknownName("protocol", protocol, known)
        raise ConfigError(
            f"protocol {protocol} does not train {values['task']['name']}: use {' or '.join(sorted(task.defaults))}"
            + (f", or `facessl probe --protocol {protocol}`" if protocol in probes else "")
        )
    return task.defaults[protocol]


def _augmentation(values: Mapping[str, Any]) -> Mapping[str, str]:
    """Published augmentation of a protocol, for the help of `augment`."""
    protocol = values.get("protocol") or FinetuneConfig.protocol
    published = plugins.find("tasks", values["task"]["name"]).augments[protocol]
    changed = [f.name for f in dataclasses.fields(published) if getattr(published, f.name) != f.default]
    texts = [f"{name}: {_rounded(getattr(published, name))}" for name in changed]
    return {"augment": f"those of the protocol are {{{', '.join(texts)}}}"}


def _rounded(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else round(value, 4) if isinstance(value, float) else value


PRETRAIN = Command(
    "pretrain",
    PretrainConfig,
    "method",
    "fra",
    {"source": "NAME:PATH?option=value, or a path; none: synthetic faces (synthetic:)"},
    recipes_are_explicit=False,  # a recipe is made for another length
    preset=_of_method,
    switches={
        "crop": "find the faces of the source's photos first, as `facessl crop` does by default, and train on the "
        "crops, which are kept in the cache folder"
    },
)
FINETUNE = Command(
    "finetune",
    FinetuneConfig,
    "task",
    "expression",
    {
        "run": "run folder, checkpoint, exported backbone, timm:NAME, or none (random weights)",
        "source": "labeled images, NAME:PATH?option=value or a path",
    },
    recipes_are_explicit=True,
    preset=_published,
    remarks=_augmentation,
)


def resolved(config: FinetuneConfig) -> dict[str, Any]:
    """Plain values of a fine-tuning configuration, with the protocol's whole crop and augmentation.

    UnknownName, ConfigError: an unknown field of `augment`, or a value that is not valid.
    """
    from facessl.views.augment import augment_from_dict  # not above, as it imports torch

    published = dataclasses.asdict(plugins.find("tasks", config.task["name"]).augments[config.protocol])
    for name in config.augment:
        if name not in published:
            raise UnknownName("field of augment", name, published)
    try:
        augment = augment_from_dict(published | config.augment)
    except TypeError as error:
        raise ConfigError(f"augment {dict(config.augment)} has a value of the wrong kind: {error}") from None
    return to_plain({**config.to_dict(), "augment": dataclasses.asdict(augment)})
