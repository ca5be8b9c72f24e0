"""Recipes: YAML files of settings and rows of the papers' tables, shipped with the package or a user's own."""

import functools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from facessl.config.run import flatten, merge
from facessl.core.errors import ConfigError, UnknownName
from facessl.core.yaml_file import parse_yaml, read_text

_ROOT = Path(str(resources.files("facessl"))) / "recipes"
_TABLES = _ROOT / "tables.yaml"


def read_recipe(name: str, *, derived: tuple[str, ...] = ()) -> dict[str, Any]:
    """Settings of a recipe, by path or by its shipped name (with or without `recipes/` and `.yaml`).

    Its key `base` names a recipe that it changes; everything else is a field of `RunConfig` or `FinetuneConfig`.
    `derived` are the recipes with this base, to detect a cycle.

    Raises:
        UnknownName: there is no such recipe.
        ConfigError: it is not the YAML of a recipe, or is among its own bases.
    """
    if name in derived:
        raise ConfigError(f"recipe {name} is its own base ({' -> '.join([*derived, name])}): remove one `base:`")
    values = _parsed(recipe_text(name), name)
    base = values.pop("base", None)
    return merge(read_recipe(str(base), derived=(*derived, name)), values) if base else values


def recipe_text(name: str) -> str:
    """YAML of a recipe with its comments, by path or by its shipped name. UnknownName: there is none.

    ConfigError: the file cannot be read, or is too large to be a recipe.
    """
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    path = Path(name)
    if not path.is_file():
        if short in table_rows():
            return _row_text(short)
        path = _ROOT / f"{short}.yaml"
        if short not in recipes():
            raise UnknownName("recipe", name, recipes())
    return read_text(path)


@functools.cache
def recipes() -> tuple[str, ...]:
    """Names of the recipes shipped with the package."""
    files = (p.relative_to(_ROOT).with_suffix("").as_posix() for p in _ROOT.rglob("*.yaml") if p != _TABLES)
    return tuple(sorted([*files, *table_rows()]))


def recipe_summary(name: str) -> str:
    """First comment line of a shipped recipe."""
    return recipe_text(name).split("\n")[0].removeprefix("# ")


@functools.cache
def table_rows() -> dict[str, dict[str, Any]]:
    """Rows of the papers' tables by the name of their recipe; `recipes/tables.yaml` documents the fields."""
    tables = yaml.safe_load(_TABLES.read_text(encoding="utf-8"))
    rows = {}
    for table in tables["tables"]:
        for name, own in table["rows"].items():
            row = {**table, **own}
            if "backbone" in row:
                backbone = tables["backbones"][row["backbone"]]
                row["from"] = backbone["from"]
                row["settings"] = merge(backbone["settings"], row.get("settings", {}))
                row["title"] = f"{row['backbone']} on {tables['titles'][row['base']]} {next(_scores(row))[1]}"
            rows[name] = row
    return rows


def _scores(row: Mapping[str, Any]) -> Any:
    """(name, value as in the paper) of a row's scores."""
    return ((name, f"{value:.2f}" if value > 1 else f"{value:.3f}") for name, value in row["scores"].items())


def _row_text(name: str) -> str:
    """Recipe of a table's row; command and hardware are those of its base."""
    row = table_rows()[name]
    base, base_text = row["base"], recipe_text(row["base"])
    command = _comment(base_text, "command").replace(base, name).replace("runs/mine", row["settings"].get("run", ""))
    folder = name.rpartition("/")[2]
    best = ", best epoch on the TEST part (select: test)" if "select: test" in base_text else ""
    score = ", ".join(f"{score} {value}" for score, value in _scores(row))
    comments = {
        "command": command.replace(f"--out runs/{base.rpartition('/')[2]}", f"--out runs/{folder}"),
        "source": f"{row['where']}; protocol: {base}{best}" + (f". {row['note']}" if "note" in row else ""),
        "backbone": row.get("from"),
        "hardware": _comment(base_text, "hardware"),
        "hours": "not run",
        "score": f"paper: {score}" if score else "none published",
        "status": "not run",
    }
    lines = [f"# {row['title']} ({row['where']}).", "#"]
    for field, text in comments.items():
        if text:
            lines.append(f"# {field + ':':10} {text if field == 'command' else _wrapped(text)}")
    return "\n".join(lines) + "\n" + yaml.safe_dump({"base": base, **row["settings"]}, sort_keys=False)


def _wrapped(text: str) -> str:
    return f"\n#{' ' * 12}".join(textwrap.wrap(text, 105, break_long_words=False, break_on_hyphens=False))


def _comment(text: str, field: str) -> str:
    match = re.search(rf"^# {field}: +(.*(?:\n#  .*)*)", text, re.MULTILINE)
    assert match, f"a shipped recipe lacks `# {field}:`"
    return re.sub(r"\s*\\?\n#\s+", " ", match[1])


def _parsed(text: str, name: str) -> dict[str, Any]:
    """Settings of a recipe's YAML. ConfigError: it is not a recipe."""
    values = parse_yaml(text, name)
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds no settings: write `key: value` lines")
    for key in {"method", "task", "backbone", "protocol"} & values.keys():
        chosen = values[key]
        if not isinstance(chosen.get("name", "") if isinstance(chosen, dict) else chosen, str):
            raise ConfigError(f"{name}: {key} = {chosen!r} is not valid: give a name")
    return values


def refuse_foreign_commands(config: Any, typed: Sequence[str]) -> None:
    """Raise ConfigError if a recipe or a run folder, which may be untrusted, names a command to run.

    Names of shards are expanded later (braces, `::`, `${NAME}`), so a command anywhere in a value is refused, as is a
    variable, whose value may be one or a secret.
    """
    for name, value in flatten(config.to_dict()).items():
        for text in _texts(value):
            command = re.search(r"pipe:|\$\{", text, re.IGNORECASE)
            if command and not any(word == text or word.endswith(f"={text}") for word in typed):
                raise ConfigError(
                    f"{name} comes from a file and would run a command or read a variable ({text!r}): type it on the "
                    "command line if it may"
                )


def _texts(value: Any) -> Iterator[str]:
    """Every text in a setting, also in lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)
