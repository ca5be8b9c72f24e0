"""The structure that docs/architecture.md promises: packages, public names, cheap import, file sizes."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import facessl

PACKAGE = Path(facessl.__file__).parent

#: From the top down: a package imports from those after it only. Any module may import from its own package.
ORDER = (
    "cli", "app", "tools", "training", "report", "evaluation", "inference", "tasks", "pretrained",
    "methods", "models", "metrics", "config", "views", "data", "synthetic", "core",
)  # fmt: skip
#: The rest of the top level. `recipes` holds YAML.
BESIDE = {"__init__.py", "__main__.py", "py.typed", "recipes"}

PUBLIC = {
    "Backbone", "DataWarning", "Embeddings", "FaceSSLError", "crop", "crop_face", "embed", "embeddings", "evaluate",
    "export", "finetune", "group", "list_methods", "list_protocols", "list_recipes", "list_sources", "list_tasks",
    "load_backbone", "load_embedder", "load_method", "load_trained", "predict", "pretrain", "read_embeddings", "search",
    "write_embeddings",
}  # fmt: skip


def modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "facessl.")]
    return ["facessl", *found]


def is_package(name: str) -> bool:
    return PACKAGE.parent.joinpath(*name.split(".")).is_dir()


def package(name: str) -> str:
    """The package of a module; "" for `facessl` and `facessl.__main__`, which may import anything."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else ""


def imports(name: str) -> set[str]:
    path = PACKAGE.parent.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    out: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "facessl":
            module = str(node.module)
            out |= {f"facessl.{a.name}" for a in node.names} if module == "facessl" else {module}
        elif isinstance(node, ast.Import):
            out |= {a.name for a in node.names if a.name.startswith("facessl.")}
    return out


@pytest.mark.parametrize("name", modules())
def test_imports_go_down(name: str) -> None:
    own = package(name)
    for imported in imports(name):
        other = package(imported)
        if own in ("", other):
            continue
        assert other in ORDER, f"{name} imports {imported}: not a package of {ORDER}"
        assert ORDER.index(own) < ORDER.index(other), f"{name} imports {imported}, which stands above it"


def test_the_top_level_holds_the_packages_and_nothing_else() -> None:
    found = {p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"}
    assert found == {*ORDER, *BESIDE}


@pytest.mark.parametrize("name", [name for name in modules() if name != "facessl" and is_package(name)])
def test_a_package_says_what_it_holds_and_what_it_may_import(name: str) -> None:
    tree = ast.parse((PACKAGE.parent.joinpath(*name.split(".")) / "__init__.py").read_text())
    said = ast.get_docstring(tree) or ""
    assert "May import" in said
    assert len(said.splitlines()) <= 3
    rest = [ast.unparse(node) for node in tree.body[1:]]
    assert rest == (["from facessl.cli.main import main as main"] if name == "facessl.cli" else [])


@pytest.mark.parametrize("own", ORDER[1:])
def test_a_package_imports_what_it_says(own: str) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / own / "__init__.py").read_text())) or ""
    allowed = said[said.index("May import") :].split(";")[0]
    found = {package(other) for name in modules() if package(name) == own for other in imports(name)}
    assert {word for word in re.findall(r"\w+", allowed) if word in ORDER} == found - {own, ""}


def test_public_names_change_on_purpose_only() -> None:
    assert set(facessl.__all__) == PUBLIC
    assert set(dir(facessl)) >= PUBLIC
    for name in PUBLIC:
        assert (getattr(facessl, name).__doc__ or "").strip(), f"facessl.{name} has no docstring"


def test_every_module_imports_and_says_what_it_is() -> None:
    for name in modules():
        if name.endswith("__main__"):
            continue
        assert importlib.import_module(name).__doc__, f"{name} has no docstring"


@pytest.mark.parametrize(
    "code",
    [
        "import facessl; facessl.list_methods",
        "from facessl.core.plugins import settings; [settings('methods', n) for n in ('byol', 'fra', 'mae')]",
        "from facessl.cli import main; main(['list', 'methods'])",
    ],
    ids=["import", "help of pretrain", "list of methods"],
)
def test_torch_is_not_loaded_where_it_is_not_needed(code: str) -> None:
    assert (
        subprocess.run([sys.executable, "-c", f"import sys; {code}; sys.exit('torch' in sys.modules)"]).returncode == 0
    )


def test_files_stay_readable() -> None:
    root = PACKAGE.parent
    folders = (PACKAGE, *(root / name for name in ("tests", "benchmarks") if (root / name).is_dir()))
    lengths = {p: len(p.read_text().splitlines()) for folder in folders for p in folder.rglob("*.py")}
    # A method is one file, hyper-parameters and their descriptions included.
    long = {
        str(p.relative_to(root)): n for p, n in lengths.items() if n > (600 if p.parent == PACKAGE / "methods" else 400)
    }
    assert not long, f"split these: {long}"
