"""The table of house floors: who may import whom, how long things may be, and what no file may contain."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each part may import of the project's other parts.
MAY_IMPORT = {
    "utils": set(),
    "models": {"utils"},
    "objectives": {"utils"},
    "dataset": {"utils"},
    "optim": {"utils"},
    "scheduler": {"utils"},
    "compat": {"utils"},
    "tasks": {"utils", "models", "objectives", "dataset", "optim", "scheduler"},
    "trainer": {"utils", "optim", "scheduler"},
    "configs": {"utils", "models", "objectives", "dataset", "optim", "scheduler", "tasks", "trainer"},
}
# What users of an original import in its place: a face over the house, which nothing of ours imports.
FACES = ("compat/chinese_clip.py",)
TABLES_ONLY = ("models", "objectives", "dataset", "tasks", "compat")
TOPS = {*MAY_IMPORT, "forecast", "run", "rosetta"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
MAY_PRINT = ("run.py", "utils/logger.py")


def source_files():
    inside = [path for top in MAY_IMPORT for path in (ROOT / top).rglob("*.py")]
    return sorted(inside + list(ROOT.glob("*.py")))


FILES = [path.relative_to(ROOT).as_posix() for path in source_files()]


def syntax(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported_tops(path):
    names = []
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module)
    return {name.split(".")[0] for name in names} & TOPS


def test_there_is_something_to_judge():
    assert len(FILES) > 30 and "run.py" in FILES


@pytest.mark.parametrize("path", FILES)
def test_imports_point_downwards(path):
    top = path.split("/")[0].removesuffix(".py")
    if top in MAY_IMPORT:
        assert imported_tops(path) - {top} <= MAY_IMPORT[top]


def test_nothing_of_ours_imports_a_face():
    names = {path.removesuffix(".py").replace("/", ".") for path in FACES}
    for path in FILES:
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                found = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not found & names, f"{path}:{node.lineno}"


@pytest.mark.parametrize("top", TABLES_ONLY)
def test_package_files_hold_only_tables(top):
    for node in syntax(f"{top}/__init__.py").body:
        assert isinstance(node, (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)), ast.unparse(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert ast.unparse(node) == "from utils.registry import Registry"


@pytest.mark.parametrize("path", FILES)
def test_files_and_functions_are_short(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    functions = [n for n in ast.walk(syntax(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION_LINES] == []


@pytest.mark.parametrize("path", FILES)
def test_no_file_hides_errors_prints_or_shells_out(path):
    for node in ast.walk(syntax(path)):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}:{node.lineno}: bare except"
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert called != "os.system", f"{path}:{node.lineno}"
        assert called != "print" or path in MAY_PRINT, f"{path}:{node.lineno}: print"


@pytest.mark.parametrize("path", FILES)
def test_sources_are_ascii(path):
    assert (ROOT / path).read_bytes().isascii()
