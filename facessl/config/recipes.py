"""Recipes: YAML files of settings, shipped with the package or a person's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from facessl.config.run import flatten, merge, one_line
from facessl.core.errors import ConfigError, UnknownName


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by path or by its shipped name (`fra/vggface2-r50`, with or without `recipes/` and `.yaml`).

    Its key `base` names a recipe that it changes; everything else is a field of `RunConfig`.
    """
    chosen = _file(name)
    try:
        values = yaml.safe_load(chosen.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{chosen} is not valid YAML: {one_line(str(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{chosen} holds no settings: write `key: value` lines")
    base = values.pop("base", None)
    return merge(read_recipe(str(base)), values) if base else values


def recipe_text(name: str) -> str:
    """The YAML of a recipe with its comments, by path or by its shipped name. UnknownName where there is none."""
    return _file(name).read_text()


def recipes() -> tuple[str, ...]:
    """Names of the recipes shipped with the package."""
    root = Path(str(resources.files("facessl"))) / "recipes"
    return tuple(sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml")))


def recipe_summary(name: str) -> str:
    """First comment line of a shipped recipe."""
    path = Path(str(resources.files("facessl"))) / "recipes" / f"{name}.yaml"
    return path.read_text().split("\n")[0].removeprefix("# ")


def _file(name: str) -> Path:
    path = Path(name)
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    shipped = Path(str(resources.files("facessl"))) / "recipes" / f"{short}.yaml"
    chosen = path if path.is_file() else shipped
    if not chosen.is_file():
        raise UnknownName("recipe", name, recipes())
    return chosen


def refuse_foreign_commands(config: Any, typed: Sequence[str]) -> None:
    """ConfigError where a recipe or a run folder, which may be somebody else's, names a command to be run."""
    for name, value in flatten(config.to_dict()).items():
        runs = isinstance(value, str) and re.match(r"([\w-]+:)?pipe:", value)
        if runs and not any(word == value or word.endswith(f"={value}") for word in typed):
            raise ConfigError(
                f"{name} comes from a file and would run a command ({value!r}): type it on the command line if it may"
            )
