"""Pages of the site that are made from the code: mkdocs runs this as a hook (`hooks` in mkdocs.yml).

A method's page is docs/methods/NAME.md, if there is one, and what its code, its recipes and the measurements say.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import facessl
from facessl.cli import main
from facessl.cli.main import COMMANDS
from facessl.config.argument_parser import dashed
from facessl.config.commands import FINETUNE, PRETRAIN, Command
from facessl.config.parse import read
from facessl.config.recipes import read_recipe, recipe_summary, recipe_text, recipes
from facessl.core import plugins

DOCS = Path(__file__).parent
#: Files of the repository that are pages too.
BESIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
#: Page -> heading -> what mkdocstrings shows there.
CLASSES = {
    "api": {
        "Networks and results": """models.backbone.Backbone training.pretrain.Result tools.crop.CropSummary
            tools.options.CropOptions inference.embedding_formats.Embeddings inference.neighbors.Neighbors
            inference.groups.Groups inference.trained_task.Trained inference.predict.Prediction""",
        "Errors": """core.errors.FaceSSLError core.errors.ConfigError core.errors.DataError core.errors.CheckpointError
            core.errors.PluginError core.errors.TrainingError core.errors.UnknownName core.errors.DataWarning""",
    },
    "contracts": {
        "Plug-ins": "methods.base.Method data.source.Source tasks.base.Task tasks.base.Meter",
        "What they are given and give": """core.types.Sample core.types.Batch core.types.Progress core.types.Step
            tasks.base.Labels views.spec.View views.augment.Augment""",
    },
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """`methods/*` in the navigation becomes a page per method."""
    config.nav = [_expanded(entry) for entry in config.nav or []]
    return config


def _expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(inner) for title, inner in entry.items()}
    if not isinstance(entry, list):
        return entry
    found = [_pages(item) if isinstance(item, str) and item.endswith("/*") else [_expanded(item)] for item in entry]
    return [item for items in found for item in items]


def _pages(pattern: str) -> list[str]:
    folder = pattern.removesuffix("/*")
    return [f"{folder}/{name}.md" for name in plugins.names(folder)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that have no file in docs/."""
    made = {"configuration.md": configuration(), "commands.md": commands(), "api.md": api(), "tour.md": tour()}
    made["contracts.md"] = (
        f"# Contracts\n\nWhat the code of a plug-in meets ([Extend](extending.md)).\n\n{classes('contracts')}"
    )
    made |= {name: (DOCS.parent / file).read_text(encoding="utf-8") for name, file in BESIDE.items()}
    for command in (PRETRAIN, FINETUNE):
        for name in plugins.names(command.folder):
            made.setdefault(f"{command.folder}/{name}.md", f"# {plugins.find(command.folder, name).__name__}\n")
    for name, text in made.items():
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adds what the code says to the pages of methods and tasks; links to files outside docs/ become pages."""
    for name, file in BESIDE.items():
        markdown = markdown.replace(f"](../{file}", f"]({name}").replace("](docs/", "](")
    markdown = markdown.replace("](../README.md)", "](index.md)")
    markdown = with_rows(markdown)
    folder, _, name = page.file.src_uri.removesuffix(".md").partition("/")
    if folder == "methods" and name:
        told, heading, differences = markdown.partition("\n## Differences")
        return f"{told}\n{method(name)}\n{heading}{differences}"
    if folder == "tasks" and name:
        return markdown + task(name)
    return markdown


def with_rows(markdown: str) -> str:
    """`<!-- rows: NAME -->` becomes the commands of the recipes whose names begin with NAME."""

    def commands(found: re.Match[str]) -> str:
        names = [name for name in recipes() if name.startswith(found[1])]
        told = [
            re.sub(r"^# (.*) \(.*\n(?s:.*?)# command: +(.*)\n(?s:.*)", r"# \1\n\2", recipe_text(name)) for name in names
        ]
        return "```bash\n" + "\n\n".join(told) + "\n```\n"

    return re.sub(r"<!-- rows: (.*) -->\n", commands, markdown)


def method(name: str) -> str:
    """Facts, settings, recipes and cost of a method."""
    overview, measured = ((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in ("methods", "performance"))
    cost = rows(measured.split("## Methods")[1].split("\n## ")[0], name)
    given = f"`facessl pretrain photos/ --method {name}` takes these and all on [Configuration](../configuration.md)."
    parts = [
        f"{plugins.summary('methods', name)}\n\n{rows(overview, name)}",
        f"## Settings\n\n{given}\n\n{settings(PRETRAIN, name, 'method.')}",
        f"## Defaults\n\n{_defaults(name)}",
        f"## Recipes\n\n{_recipes(name, 'method')}",
    ]
    if cost:
        parts.append(
            f"## Cost\n\nOne step beside BYOL's on a CPU core: [Performance](../performance.md#methods).\n\n{cost}"
        )
    return "\n\n" + "\n\n".join(parts)


def _defaults(name: str) -> str:
    """Published settings of a method besides its own."""
    published = plugins.defaults("methods", name)
    if not published:
        return "All other settings have the defaults on [Configuration](../configuration.md)."
    return (
        f"`--method {name}` has these instead of the defaults on [Configuration](../configuration.md). A recipe or a "
        f"flag changes them.\n\n```yaml\n{yaml.safe_dump(published, sort_keys=False)}```"
    )


def task(name: str) -> str:
    """Docstring, settings, protocols and recipes of a task."""
    found = plugins.find("tasks", name)
    options = "    options: {members: [], show_root_heading: false, show_root_toc_entry: false, show_bases: false}"
    protocols = [
        f"### {protocol}\n\n```yaml\n{yaml.safe_dump(values, sort_keys=False)}```"
        for protocol, values in found.defaults.items()
    ]
    parts = [
        f"::: {found.__module__}.{found.__name__}\n{options}",
        f"A source has to give {' and '.join(f'`{field}`' for field in sorted(found.needs))} for every image.",
        f"## Settings\n\n`facessl finetune RUN SOURCE --task {name}` takes these, and everything on "
        f"[Configuration](../configuration.md#facessl-finetune).\n\n{settings(FINETUNE, name, 'task.')}",
        "## Protocols\n\nDefaults of `--protocol NAME`; a recipe or a flag changes them.\n\n" + "\n\n".join(protocols),
        f"## Recipes\n\n{_recipes(name, 'task')}",
    ]
    return "\n\n" + "\n\n".join(parts)


def _recipes(name: str, part: str) -> str:
    found = [recipe for recipe in recipes() if read_recipe(recipe).get(part, {}).get("name") == name]
    shown = [recipe for recipe in found if "/ablation/" not in recipe]
    told = table(["recipe", "what it is"], [[f"`{recipe}`", recipe_summary(recipe)] for recipe in shown])
    return told + (
        f"\n\n`facessl list recipes {name}/ablation` lists {len(found) - len(shown)} ablations."
        if shown != found
        else ""
    )


def settings(command: Command, name: str, prefix: str = "", without: Sequence[str] = ()) -> str:
    """Table of the flags that begin with `prefix`: what `--help` shows."""
    parser = read([f"--{command.part}", name], command).parser
    types = parser._get_formatter()
    found = [
        [
            f"`{dashed(action.dest)}`" if action.option_strings else f"`{action.dest.upper()}`",
            types._get_type_str(action) or "",
            f"`{_plain(action.default)}`",
            re.sub(r"<(?=\w)", "&lt;", " ".join(str(action.help).split())),
        ]
        for action in parser._actions
        if action.dest.startswith(prefix)
        and not (prefix and action.dest.endswith(".name"))
        and action.default != "==SUPPRESS=="
        and not action.dest.startswith(tuple(without))
    ]
    return table(["flag", "type", "default", "meaning"], found) if found else "None of its own."


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in every)


def rows(text: str, name: str) -> str:
    """The rows of the tables in `text` whose first cell is `name`, each under the head of its table."""
    found: list[str] = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.splitlines()
        own = [line for line in lines[2:] if re.sub(r"\(.*?\)|[\[\]` ]", "", line.split("|")[1]) == name]
        own = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", line) for line in own]  # links start from another page
        found += ["\n".join([*lines[:2], *own])] if own else []
    return "\n\n".join(found)


def configuration() -> str:
    """Every setting of the two commands that train; those of a method or task are on its page."""
    parts = [
        "# Configuration\n\nWhat `--help` shows, on one page. A recipe's YAML has the same names, with `_` for `-`."
    ]
    for command, part in ((PRETRAIN, "methods"), (FINETUNE, "tasks")):
        links = ", ".join(f"[{name}]({part}/{name}.md#settings)" for name in plugins.names(part))
        parts.append(
            f"## facessl {command.name}\n\nEach of the {part} has settings and defaults of its own: {links}.\n\n"
            + settings(command, command.default, without=[f"{command.part}."])
        )
    return "\n\n".join(parts)


def commands() -> str:
    """The help of every other command."""
    parts = ["# Commands\n\nTheir help; that of `pretrain` and `finetune` is [Configuration](configuration.md)."]
    for name in COMMANDS:
        if name not in ("pretrain", "finetune"):
            with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
                main([name, "--help"])
            parts.append(f"## {name}\n\n```text\n{said.getvalue().strip()}\n```")
    return "\n\n".join(parts)


def api() -> str:
    """The public names."""
    parts = [f"# Python API\n\n{(facessl.__doc__ or '').strip()}", "## Functions"]
    functions = [f"::: facessl.{name}" for name in sorted(facessl.__all__) if name.islower()]
    return "\n\n".join([*parts, *functions, classes("api")])


def classes(page: str) -> str:
    """The classes of a page, by mkdocstrings."""
    headed = [
        [f"## {title}", *(f"::: facessl.{name}" for name in names.split())] for title, names in CLASSES[page].items()
    ]
    return "\n\n".join(part for parts in headed for part in parts)


def tour() -> str:
    """The notebook as a page."""
    notebook = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))
    return "\n\n".join(part for cell in notebook["cells"] for part in _cell(cell))


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    text = "".join(cell["source"])
    yield text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
        else:
            yield f"```text\n{''.join(output.get('text') or data.get('text/plain', ())).rstrip()}\n```"
