"""Plug-ins are found by their file's name: `methods/fra.py` holds the class `FRA`. There is no registry.

Files outside the package are plug-ins once `add` imported them (`--plugin FILE.py`).
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from facessl.core.errors import PluginError, UnknownName, UnknownPlugin

#: Modules of files outside the package, by folder and name.
_outside: dict[tuple[str, str], ModuleType] = {}
#: Folder -> members that its classes must have.
_MEMBERS = {
    "tasks": ("Args", "needs", "defaults", "augments", "step", "predict", "meter", "describe"),
    "methods": ("Args", "needs", "views", "mean", "std", "step", "after_step"),
    "data.sources": ("provides", "columns", "__len__", "__getitem__", "key", "image", "fingerprint"),
}


def add(file: str | Path) -> None:
    """Import the method, source or task of a file outside the package, and register it by the file's name.

    PluginError: not a Python file, cannot be imported, has no such class, it lacks members, or its name is taken.
    """
    path = Path(file).expanduser().resolve()
    name = path.stem
    if not path.is_file() or path.suffix != ".py" or not name.isidentifier():
        raise PluginError(f"{file} is not a Python file whose name is an identifier, such as my_method.py")
    known = sys.modules.get(name)
    spec = None if known else importlib.util.find_spec(name)
    other = getattr(known, "__file__", "Python") if known else spec and spec.origin
    inside = [f"facessl/{folder.replace('.', '/')}/{name}.py" for folder in _MEMBERS if name in _inside(folder)]
    if inside or ((known or spec) and str(path) != other):
        taker = inside[0] if inside else other
        raise PluginError(f"{file}: the name {name!r} is taken by {taker}: rename the file and its class")
    try:
        imported = known or _import(path)
    except Exception as error:
        lines = [f", line {f.lineno}" for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = lines[-1] if lines else ""
        raise PluginError(f"{file} cannot be imported: {type(error).__name__}: {error}{line}") from None
    kind = _named_like(imported, name)
    folder = min(_MEMBERS, key=lambda folder: len(_lacking(folder, kind)) / len(_MEMBERS[folder]))
    try:
        if len(_lacking(folder, kind)) == len(_MEMBERS[folder]):
            raise PluginError(
                f"{file} defines no method, source or task {name.replace('_', '')!r}, named like the file (case and "
                "underscores aside): docs/extending.md shows one of each"
            )
        _refuse_lacking(folder, kind, imported)
    except PluginError:
        del sys.modules[name]  # so that the corrected file can be added
        raise
    _outside[folder, name] = imported


def _lacking(folder: str, kind: Any) -> list[str]:
    return [member for member in _MEMBERS.get(folder, ()) if not hasattr(kind, member)]


def _refuse_lacking(folder: str, kind: Any, owner: ModuleType) -> None:
    if lacking := _lacking(folder, kind):
        says = f"facessl/{folder}/base.py says what a {folder.rstrip('s')} has"
        if folder == "data.sources":
            says = "a source inherits facessl.data.source.Source"
        raise PluginError(f"{owner.__file__}: the class {kind.__name__} has no {', '.join(lacking)}: {says}")


def _import(path: Path) -> ModuleType:
    """Import exactly this file: no folder or compiled file of its name, and nothing beside it."""
    imported = ModuleType(path.stem)
    imported.__file__ = str(path)
    sys.modules[path.stem] = imported
    if sys.platform != "linux":
        sys.path.append(str(path.parent))  # spawned processes import it by its name
    try:
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), vars(imported))
    except BaseException:
        del sys.modules[path.stem]
        raise
    return imported


def names(folder: str) -> tuple[str, ...]:
    """Sorted names of the plug-ins of a folder ("methods", "data.sources", ...), those outside the package included."""
    return tuple(sorted({*_inside(folder), *(name for other, name in _outside if other == folder)}))


def _inside(folder: str) -> set[str]:
    package = importlib.import_module(f"facessl.{folder}")
    modules = (m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    return {name for name in modules if name != "base" and not name.startswith("_")}


def module(folder: str, name: str) -> ModuleType:
    """Module of a plug-in, `facessl/<folder>/<name>.py`. UnknownName: there is none."""
    name = known(folder, name)
    return _outside.get((folder, name)) or importlib.import_module(f"facessl.{folder}.{name}")


def known(folder: str, name: str) -> str:
    """The name of a plug-in with underscores, as its file has it; dashes may be typed. UnknownName: there is none."""
    if name.replace("-", "_") not in names(folder):
        unknown = UnknownPlugin if folder in _MEMBERS else UnknownName
        raise unknown(folder.rsplit(".", 1)[-1].rstrip("s"), name, (n.replace("_", "-") for n in names(folder)))
    return name.replace("-", "_")


def _parsed(folder: str, name: str) -> tuple[ast.Module, Any]:
    """A plug-in's file, parsed but not run, and its class or function. UnknownName: there is no such file."""
    name = known(folder, name)
    if (folder, name) in _outside:
        file = Path(str(_outside[folder, name].__file__))
    else:
        file = Path(importlib.import_module(f"facessl.{folder}").__path__[0]) / f"{name}.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    wanted = name.replace("_", "")
    nodes = (n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name.lower() == wanted)
    return tree, next(nodes, None)


def summary(folder: str, name: str) -> str:
    """First line of a plug-in's docstring, read from its file without importing it."""
    _, node = _parsed(folder, name)
    return "" if node is None else (ast.get_docstring(node) or "").split("\n")[0]


def keywords(folder: str, name: str) -> set[str]:
    """Keyword-only parameters of a plug-in that is a function, read from its file without importing it."""
    _, node = _parsed(folder, name)
    return {argument.arg for argument in node.args.kwonlyargs}


def settings(folder: str, name: str) -> Any:
    """The class `Args` of a plug-in, mostly without importing its file, which takes seconds. UnknownName as `module`.

    The file is run up to that class, importing only the standard library, `facessl.core.errors` and
    `facessl.core.values`. If the class needs more, the whole file is imported.
    """
    tree, node = _parsed(folder, name)
    value = _assigned(node, "Args")
    args = ast.unparse(value) if value else ""
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


def defaults(folder: str, name: str) -> Mapping[str, Any]:
    """The mapping `defaults` of a plug-in, {} without one; its file is not imported if that is a literal.

    UnknownName as `module`. PluginError: it is not a mapping.
    """
    _, node = _parsed(folder, name)
    value = _assigned(node, "defaults")
    found: Any = None
    if value:
        with contextlib.suppress(ValueError):
            found = ast.literal_eval(value)
    elif [ast.unparse(base) for base in getattr(node, "bases", ())] == ["nn.Module"]:
        return {}  # nothing is inherited
    if found is None:
        found = getattr(find(folder, name), "defaults", {})
    if not isinstance(found, Mapping):
        raise PluginError(f"{folder.rstrip('s')} {name}: defaults = {found!r} is not a mapping: give settings by name")
    return found


def _assigned(node: Any, name: str) -> ast.expr | None:
    """Value that is assigned to `name` in the body of a class; None without one."""
    for statement in getattr(node, "body", ()):
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", ())
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value: ast.expr | None = statement.value
            return value
    return None


def _light(statement: ast.Import | ast.ImportFrom) -> bool:
    module = str(statement.module) if isinstance(statement, ast.ImportFrom) else statement.names[0].name
    light = module in ("facessl.core.errors", "facessl.core.values")
    return light or module.split(".")[0] in sys.stdlib_module_names


@functools.cache
def find(folder: str, name: str) -> Any:
    """The class in `facessl/<folder>/<name>.py` whose name is the file's name, case and underscores aside.

    UnknownName: the file is missing. PluginError: its class is missing, or lacks members.
    """
    owner, name = module(folder, name), known(folder, name)
    kind = _named_like(owner, name)
    if kind is None:
        raise PluginError(
            f"facessl/{folder.replace('.', '/')}/{name}.py defines no class or function {name.replace('_', '')!r}, "
            "named like the file (case and underscores aside)"
        )
    _refuse_lacking(folder, kind, owner)
    return kind


def _named_like(owner: ModuleType, name: str) -> Any:
    """The class or function of a module that is named like its file, case and underscores aside; None without one."""
    wanted = name.replace("_", "").lower()
    defined = {
        key.lower(): value for key, value in vars(owner).items() if getattr(value, "__module__", "") == owner.__name__
    }
    return defined.get(wanted)
