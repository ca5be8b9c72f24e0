"""Plug-ins are found by their file's name: `methods/fra.py` holds the class `FRA`. There is no registry."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
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

    Only those statements of the file are run that `Args` needs: its class, what that names, and imports from the
    standard library, `facessl.core.errors` and `facessl.core.values`. Where it needs any other import, the whole file
    is imported.

    Raises:
        UnknownName: no such file.
    """
    tree, node = _parsed(folder, name)
    bound = {word: statement for statement in tree.body for word in _binds(statement)}
    args: str | None = next((s.value.id for s in getattr(node, "body", ()) if "Args" in _binds(s)), None)
    if args is None:
        return find(folder, name).Args
    needed: list[ast.stmt] = []
    words = [args]
    while words:
        statement = bound.get(words.pop())
        if statement is None or statement in needed:
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom) and not _is_light(statement):
            return find(folder, name).Args
        needed.append(statement)
        words += [n.id for n in ast.walk(statement) if isinstance(n, ast.Name)]
    scope: dict[str, Any] = {"__name__": __name__}
    body = ast.Module([statement for statement in tree.body if statement in needed], type_ignores=[])
    exec(compile(body, f"{name}.py", "exec", dont_inherit=True), scope)
    return scope[args]


def _binds(statement: ast.stmt) -> list[str]:
    """Names that a statement gives a value."""
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign(targets=targets):
            return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [alias.asname or alias.name for alias in names]
    return []


def _is_light(statement: ast.Import | ast.ImportFrom) -> bool:
    module = statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name
    return (
        module in ("facessl.core.errors", "facessl.core.values") or str(module).split(".")[0] in sys.stdlib_module_names
    )


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
