"""What is installed is what is imported, and the lock holds versions of all of it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = {"faiss": "faiss-cpu", "PIL": "pillow", "cv2": "opencv-python-headless", "ruamel": "ruamel.yaml"}
# Imported only where a setting asks for them, or read by another package on our behalf.
OPTIONAL, BEHIND = {"wandb", "tensorboard"}, {"sentencepiece", "onnx", "onnxscript", "python-multipart"}
EXTRAS = ("requirements-serve.txt", "requirements-search.txt")  # what only some programs need
PROGRAMS = ("bench", "compat", "configs", "dataset", "models", "objectives", "tasks", "utils")


def requirement_names(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {re.match(r"[\w.-]+", line).group().lower() for line in lines if line[:1].isalpha()}


def imported_packages():
    files = [path for part in PROGRAMS for path in (ROOT / part).rglob("*.py")] + list(ROOT.glob("*.py"))
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    own = {*PROGRAMS, "tests", *(path.stem for path in ROOT.glob("*.py"))}
    return {DISTRIBUTION.get(name, name) for name in names - own - set(sys.stdlib_module_names)}


def test_requirements_are_what_is_imported():
    extra = set().union(*map(requirement_names, EXTRAS))
    assert requirement_names("requirements.txt") - BEHIND == imported_packages() - OPTIONAL - extra
    assert extra - BEHIND <= imported_packages()


def test_what_only_some_programs_need_is_imported_by_them_alone():
    """`import rosetta` and a training run must do without; a table of lazy names loads the programs."""
    extra = set().union(*map(requirement_names, EXTRAS)) | {"coremltools", "faiss"}
    code = "import run, rosetta, trainer, configs.schema, tasks.image_text, models.model, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not extra & set(loaded.split())


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", *EXTRAS])
def test_every_requirement_has_a_lower_bound_and_a_tested_version(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line[:1].isalpha()]
    assert lines and all(re.fullmatch(r"[\w.-]+>=[\d.]+", line) for line in lines), lines
    assert requirement_names(name) <= requirement_names("requirements.lock")


def test_what_comes_without_its_own_requirements_is_pinned():
    """pip cannot tell whether such a package fits, so its version is the tested one."""
    lines = [line for line in (ROOT / "requirements-peers.txt").read_text().splitlines() if line[:1].isalpha()]
    assert lines and all(re.fullmatch(r"[\w.-]+==[\d.]+", line) for line in lines), lines


def test_the_lock_names_versions_and_nothing_of_a_machine():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r'[\w.-]+==[\w.]+( ; sys_platform == "linux")?', line), line


def test_licences_of_bundled_data_are_stated():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    bundled = [path for path in (ROOT / "assets").rglob("*") if path.suffix in (".zip", ".gz", ".txt")]
    for path in bundled:
        assert path.relative_to(ROOT).as_posix() in notice, path
