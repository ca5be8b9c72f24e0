"""The two commands that read a configuration: what differs between them before a run."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from facessl.config.finetune import FinetuneConfig
from facessl.config.pretrain import PretrainConfig
from facessl.config.run import RunConfig, to_plain
from facessl.core import plugins
from facessl.core.errors import ConfigError, PluginError, UnknownName


@dataclass(frozen=True)
class Command:
    """What differs between the commands that read a configuration."""

    name: str  # of the command
    config: type[RunConfig]  # its dataclass
    part: str  # the field that holds a plug-in's name and values ("method", "task")
    default: str  # the plug-in that stands there when none is named
    positional: Mapping[str, str]  # fields given without a flag, with their help
    members: tuple[str, ...]  # what a plug-in must have
    recipes_are_explicit: bool  # whether the values of a recipe count as asked for (`RunConfig.explicit`)
    # values so far -> values that stand below them (a protocol's published settings)
    preset: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {}
    # values so far -> what is added to the help of a setting, by its name
    remarks: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda values: {}
    switches: Mapping[str, str] = field(default_factory=dict)  # flags that are no settings, with their help

    @property
    def folder(self) -> str:
        """Folder of the plug-ins."""
        return f"{self.part}s"

    @property
    def groups(self) -> set[str]:
        """Settings that hold others."""
        return {f.name for f in dataclasses.fields(self.config) if dataclasses.is_dataclass(f.default_factory)}

    def plugin(self, name: str) -> Any:
        """The plug-in's class. UnknownName: there is none of that name. PluginError: it lacks members."""
        kind = plugins.find(self.folder, name)
        missing = [member for member in self.members if not hasattr(kind, member)]
        if missing:
            raise PluginError(
                f"{sys.modules[kind.__module__].__file__}: the class {kind.__name__} has no {', '.join(missing)}: "
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
    """What `augment` changes, for its help."""
    published = FINETUNE.plugin(values["task"]["name"]).augments[values.get("protocol") or FinetuneConfig.protocol]
    changed = [f.name for f in dataclasses.fields(published) if getattr(published, f.name) != f.default]
    told = [f"{name}: {_rounded(getattr(published, name))}" for name in changed]
    return {"augment": f"those of the protocol are {{{', '.join(told)}}}"}


def _rounded(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else round(value, 4) if isinstance(value, float) else value


PRETRAIN = Command(
    "pretrain",
    PretrainConfig,
    "method",
    "fra",
    {"source": "NAME:PATH?option=value, or a path; none: synthetic faces (synthetic:)"},
    members=("Args", "needs", "views", "mean", "std", "step", "after_step"),
    recipes_are_explicit=False,  # a recipe is made for another length
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
    members=("Args", "needs", "defaults", "augments", "step", "predict", "meter", "describe"),
    recipes_are_explicit=True,
    preset=_published,
    remarks=_augmentation,
)


def resolved(config: FinetuneConfig) -> dict[str, Any]:
    """Plain values of a fine-tuning configuration, with all of the protocol's crop and augmentation.

    UnknownName, ConfigError: a field of `augment` that there is not, or a value that it cannot have.
    """
    from facessl.views.augment import augment_from_dict  # not above, as it imports torch

    published = dataclasses.asdict(FINETUNE.plugin(config.task["name"]).augments[config.protocol])
    for name in config.augment:
        if name not in published:
            raise UnknownName("field of augment", name, published)
    try:
        augment = augment_from_dict(published | config.augment)
    except TypeError as error:
        raise ConfigError(f"augment {dict(config.augment)} has a value of the wrong kind: {error}") from None
    values: dict[str, Any] = to_plain({**config.to_dict(), "augment": dataclasses.asdict(augment)})
    return values
