"""Runs every fixture case under the root that `--fixtures` names; the repository's own copy by default."""

from pathlib import Path

import pytest

OWN_FIXTURES = Path(__file__).parent / "fixtures"


def fixture_root(config: pytest.Config) -> Path:
    return Path(config.getoption("--fixtures") or OWN_FIXTURES)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = sorted(path.parent for path in fixture_root(metafunc.config).glob("*/*/kind.json"))
        metafunc.parametrize("case", cases, ids=[f"{path.parent.name}/{path.name}" for path in cases])
