"""Imports go down the floors, never up and never in a circle, imports inside functions included."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "streamfit"
FLOORS = (
    {"errors", "arrays", "factoring", "identity", "pieces", "precision"},
    {
        "targets",
        "exact",
        "frame",
        "centered",
        "moments",
        "noise",
        "triangle",
        "counts",
        "counted",
        "merging",
        "repeats",
        "plan",
        "features",
        "sparse_sum",
        "sparse_moments",
        "density",
    },
    {"solve"},
    {"corpus", "store"},
    {"engine"},
    {
        "models",
        "card",
        "provenance",
        "onnx_model",
        "onnx_columns",
        "estimators",
        "feature_names",
        "readers",
        "tables",
        "sparse_sample",
        "text",
    },
    {
        "config",
        "config_corpus",
        "machines",
        "sections",
        "doctor",
        "doctor_gpu",
        "report",
        "harness",
        "jobs",
        "held_out",
        "preflight",
        "model_runs",
        "solving",
        "passes",
        "stores",
        "forgetting",
        "removals",
        "worth",
        "rows",
        "starter",
        "look",
        "drift",
        "schemas",
        "__main__",
        "forecast",
        "cli_config",
        "verbs",
        "optimum",
        "demo",
        "history",
        "reporting",
        "predicting",
        "table_files",
        "piping",
        "cli",
        "cli_data",
        "cli_machine",
        "cli_model",
        "cli_report",
        "cli_options",
        "cli_solve",
        "cli_store",
        "cli_text",
    },
)
LOW_FLOORS_MAY_NOT_IMPORT = {"dask", "distributed", "zarr", "obstore", "pyarrow", "datasets", "tokenizers"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _floor(module: str) -> int:
    unit = module.split(".")[1]
    return next(i for i, units in enumerate(FLOORS) if unit in units)


def test_every_module_stands_on_a_floor():
    units = {_name(path).split(".")[1] for path in MODULES if _name(path) != "streamfit"}
    assert units == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_go_down(path: Path):
    module = _name(path)
    if module == "streamfit":
        return
    for imported in _imports(path):
        if imported.startswith("streamfit."):
            assert _floor(imported) <= _floor(module), f"{module} imports {imported} from a higher floor"
        if _floor(module) < 3:
            assert imported.split(".")[0] not in LOW_FLOORS_MAY_NOT_IMPORT, f"{module} imports {imported}"


def test_no_circles():
    names = {_name(path) for path in MODULES}
    # A package's __init__ only gathers names; what counts is which file needs which.
    graph = {_name(path): _imports(path) & names for path in MODULES if path.name != "__init__.py"}
    gathered = {_name(path): _imports(path) & names for path in MODULES if path.name == "__init__.py"}
    graph = {
        module: {n for i in imported for n in (gathered.get(i, {i}) if i in gathered else {i})}
        for module, imported in graph.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail, module))}"
        if module in done:
            return
        for imported in graph.get(module, ()):
            if imported != module and not (_same_package(module, imported, gathered)):
                visit(imported, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def _same_package(module: str, imported: str, gathered: dict[str, set[str]]) -> bool:
    """Whether `imported` is only here because `module`'s own package gathers it."""
    return module.rpartition(".")[0] == imported.rpartition(".")[0] and imported not in _imports(
        PACKAGE.parent / Path(*module.split(".")).with_suffix(".py")
    )


def _names_cupy(tree: ast.AST) -> bool:
    """Whether code names CuPy: imports, names, attributes, or strings other than docstrings; `.get()` moves memory."""
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in ast.walk(tree):
        named: list[str] = []
        if isinstance(node, ast.Import):
            named = [a.name for a in node.names] + [a.asname or "" for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [node.module or "", *(a.name for a in node.names)]
        elif isinstance(node, ast.Name):
            named = ["cupy"] if node.id == "cp" else [node.id]
        elif isinstance(node, ast.Attribute):
            named = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            named = [node.value] if re.match(r"cupyx?(_backends)?(\.|$)", node.value) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # A dictionary's or a queue's `get` has a key, or stands on something that is no array.
            bare = node.func.attr == "get" and not node.args and not node.keywords
            named = ["cupy"] if bare and not re.match(QUEUES, ast.unparse(node.func.value)) else []
        if any(re.search("cupy", name) for name in named):
            return True
    return False


QUEUES = r"ready$"


def test_only_arrays_names_cupy():
    pipelines = sorted((PACKAGE.parent / "pipelines").glob("*.py"))
    trees = {p: ast.parse(p.read_text(encoding="utf-8")) for p in (*MODULES, *pipelines)}
    # `doctor` shows whether it is installed, which is no use of it.
    assert {p.stem for p, tree in trees.items() if _names_cupy(tree)} == {"arrays", "doctor"}


@pytest.mark.parametrize(
    "code",
    [
        "import cupy as q",
        "from cupyx.scipy import linalg",
        "importlib.import_module('cupy')",
        "getattr(x, 'cupy')",
        "x.get()",
        "cp.asarray(x)",
        "array_api_compat.is_cupy_array(x)",
    ],
)
def test_every_way_to_name_cupy_is_found(code: str):
    assert _names_cupy(ast.parse(code))
    assert not _names_cupy(ast.parse("facts.get('x')"))


def test_nothing_is_pickled_to_disk_or_evaluated():
    banned = re.compile(r"pickle\.load|joblib\.load|yaml\.load\(|\beval\(|\bexec\(|trust_remote_code|shell=True")
    for path in MODULES:
        assert not banned.search(path.read_text(encoding="utf-8")), path
