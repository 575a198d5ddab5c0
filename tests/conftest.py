"""What every test relies on: the repository root on the path, one thread, no network, nothing printed in colour."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser) -> None:
    """`--fixtures ROOT`: the folder of parity cases to run. pytest's own flag of that name stays available as
    `--funcargs`.
    """
    builtin = parser.optparser._option_string_actions.pop("--fixtures", None)
    if builtin is not None:
        builtin.option_strings.remove("--fixtures")
    parser.addoption("--fixtures", dest="parity_fixtures", default=None, help="root of the parity cases")
