"""Every fixture case under the root agrees with the original implementation; a kind without a runner is a failure."""

import importlib
import json
from pathlib import Path

import pytest

from tests.parity.conftest import fixture_root

RUNNERS = Path(__file__).parent / "runners"


def known_kinds() -> dict:
    kinds = {}
    for path in sorted(RUNNERS.glob("*.py")):
        module = importlib.import_module(f"tests.parity.runners.{path.stem}")
        kinds |= getattr(module, "KINDS", {})
    return kinds


def test_case_agrees_with_the_original(case: Path) -> None:
    kind = json.loads((case / "kind.json").read_text(encoding="utf-8"))
    runner = known_kinds().get((kind["system"], kind["kind"]))
    assert runner is not None, f"no runner for {kind}; known: {sorted(known_kinds())}"
    runner(case)


def test_there_are_cases_to_run(pytestconfig: pytest.Config) -> None:
    assert list(fixture_root(pytestconfig).glob("*/*/kind.json"))
