"""Plug-ins are found by their file's name: `methods/fra.py` holds the class `FRA`. There is no registry."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from facessl.core.errors import PluginError, UnknownName


def names(folder: str) -> tuple[str, ...]:
    """Names of the plug-ins in `facessl/<folder>` ("methods", "data.sources", ...), sorted.

    `base` and files that begin with an underscore are shared parts, not plug-ins.
    """
    package = importlib.import_module(f"facessl.{folder}")
    found = (m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    return tuple(sorted(n for n in found if n != "base" and not n.startswith("_")))


def module(folder: str, name: str) -> ModuleType:
    """The module `facessl/<folder>/<name>.py`.

    Raises:
        UnknownName: no such file; the message gives the nearest valid name.
    """
    _refuse_unknown(folder, name)
    return importlib.import_module(f"facessl.{folder}.{name}")


def _refuse_unknown(folder: str, name: str) -> None:
    if name not in names(folder):
        raise UnknownName(folder.rsplit(".", 1)[-1].rstrip("s"), name, names(folder))


def _parsed(folder: str, name: str) -> tuple[list[ast.stmt], ast.ClassDef | ast.FunctionDef | None]:
    """A plug-in's file, parsed and not run, and in it the class or function. UnknownName where there is no file."""
    _refuse_unknown(folder, name)
    places = (Path(place) / f"{name}.py" for place in importlib.import_module(f"facessl.{folder}").__path__)
    body = ast.parse(next(file for file in places if file.is_file()).read_text(encoding="utf-8")).body
    named = (n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef))
    return body, next((n for n in named if n.name.lower() == name.replace("_", "")), None)


def summary(folder: str, name: str) -> str:
    """First line of a plug-in's docstring, read from its file without importing it."""
    _, node = _parsed(folder, name)
    return ((node and ast.get_docstring(node)) or "").split("\n")[0]


def settings(folder: str, name: str) -> Any:
    """The names of a plug-in's settings, read from its file without importing it (torch takes seconds).

    Returns:
        a dataclass with the fields of the class's `Args`, or with the keyword-only parameters of the function; their
        types and defaults are open. Where that cannot be read off the file, `Args` itself.

    Raises:
        UnknownName: no such file.
    """
    body, node = _parsed(folder, name)
    if isinstance(node, ast.FunctionDef):
        fields = [a.arg for a in node.args.kwonlyargs]
    else:
        values = [n.value for n in getattr(node, "body", ()) if _assigns(n, "Args")]
        own = values[0].id if values and isinstance(values[0], ast.Name) else None
        found = next((n for n in body if isinstance(n, ast.ClassDef) and n.name == own), None)
        if found is None or found.bases:
            return find(folder, name).Args
        annotated = (f.target for f in found.body if isinstance(f, ast.AnnAssign))
        fields = [target.id for target in annotated if isinstance(target, ast.Name)]
    return dataclasses.make_dataclass("Settings", [(field, Any, None) for field in fields])


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


@functools.cache
def find(folder: str, name: str) -> Any:
    """The class in `facessl/<folder>/<name>.py` whose name is the file's name, case and underscores aside.

    Raises:
        UnknownName: no such file; the message gives the nearest valid name.
        PluginError: the file has no such class.
    """
    owner = module(folder, name)
    wanted = name.replace("_", "")
    for attribute, value in vars(owner).items():
        if attribute.lower() == wanted and getattr(value, "__module__", None) == owner.__name__:
            return value
    raise PluginError(
        f"facessl/{folder.replace('.', '/')}/{name}.py defines no class or function {wanted!r}, named like the file "
        "(case and underscores aside)"
    )
