"""Plug-ins are found by their file's name: `methods/fra.py` holds the class `FRA`. There is no registry."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from facessl.errors import UnknownName


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
    if name not in names(folder):
        raise UnknownName(folder.rsplit(".", 1)[-1].rstrip("s"), name, names(folder))
    return importlib.import_module(f"facessl.{folder}.{name}")


def summary(folder: str, name: str) -> str:
    """First line of a plug-in's docstring, read from its file without importing it."""
    package = importlib.import_module(f"facessl.{folder}")
    tree = ast.parse((Path(package.__path__[0]) / f"{name}.py").read_text())
    wanted = name.replace("_", "")
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name.lower() == wanted:
            return (ast.get_docstring(node) or "").split("\n")[0]
    return ""


@functools.cache
def find(folder: str, name: str) -> Any:
    """The class in `facessl/<folder>/<name>.py` whose name is the file's name, case and underscores aside.

    Raises:
        UnknownName: no such file; the message gives the nearest valid name.
    """
    owner = module(folder, name)
    wanted = name.replace("_", "")
    for attribute, value in vars(owner).items():
        if attribute.lower() == wanted and getattr(value, "__module__", None) == owner.__name__:
            return value
    raise ImportError(f"facessl/{folder}/{name}.py defines no class or function named like the file")
