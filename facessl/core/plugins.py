"""Plug-ins are found by their file's name: `methods/fra.py` holds the class `FRA`. There is no registry."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import pkgutil
import re
import sys
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


def _parsed(folder: str, name: str) -> tuple[ast.Module, Any]:
    """A plug-in's file, parsed and not run, and its class or function in it. UnknownName where there is no file."""
    _refuse_unknown(folder, name)
    places = (Path(place) / f"{name}.py" for place in importlib.import_module(f"facessl.{folder}").__path__)
    tree = ast.parse(next(file for file in places if file.is_file()).read_text(encoding="utf-8"))
    wanted = name.replace("_", "")
    found = (n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name.lower() == wanted)
    return tree, next(found, None)


def summary(folder: str, name: str) -> str:
    """First line of a plug-in's docstring, read from its file without importing it."""
    _, node = _parsed(folder, name)
    return "" if node is None else (ast.get_docstring(node) or "").split("\n")[0]


def keywords(folder: str, name: str) -> set[str]:
    """Keyword-only parameters of a plug-in that is a function, read from its file without importing it."""
    _, node = _parsed(folder, name)
    return {argument.arg for argument in node.args.kwonlyargs}


def settings(folder: str, name: str) -> Any:
    """The class `Args` of a plug-in without importing its file, which would import torch and timm: seconds.

    The file is run up to that class, without imports of anything but the standard library, `facessl.core.errors` and
    `facessl.core.values`, and without what needs the others. Where the class does, the whole file is imported.

    Raises:
        UnknownName: no such file.
    """
    tree, node = _parsed(folder, name)
    assigned = (s for s in getattr(node, "body", ()) if isinstance(s, ast.Assign | ast.AnnAssign) and s.value)
    args = next((ast.unparse(s).split()[-1] for s in assigned if re.match(r"Args\b", ast.unparse(s))), "")
    classes = [getattr(statement, "name", None) for statement in tree.body]
    if args not in classes:
        return find(folder, name).Args
    scope: dict[str, Any] = {"__name__": __name__}
    for statement in tree.body[: classes.index(args) + 1]:
        if not isinstance(statement, ast.Import | ast.ImportFrom) or _light(statement):
            code = compile(ast.Module([statement], []), f"{name}.py", "exec", dont_inherit=True)
            with contextlib.suppress(NameError):
                exec(code, scope)
    return scope[args] if args in scope else find(folder, name).Args


def _light(statement: ast.Import | ast.ImportFrom) -> bool:
    module = str(statement.module) if isinstance(statement, ast.ImportFrom) else statement.names[0].name
    light = module in ("facessl.core.errors", "facessl.core.values")
    return light or module.split(".")[0] in sys.stdlib_module_names


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
