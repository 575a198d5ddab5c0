"""Freed blocks stay with the process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")

ASK = "from utils.allocator import keep_freed_memory; print(keep_freed_memory())"
# Page faults of making and freeing the same 256 MiB four more times, after eight that find their places.
COUNT_FAULTS = """
import resource
import torch
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(64 << 20)
before = faults()
for _ in range(4):
    torch.ones(64 << 20)
print(faults() - before)
"""


def words_of(program: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_", "LD_PRE"))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean | environment)
    return done.stdout.split()


def test_freed_blocks_are_not_touched_again_as_new_pages() -> None:
    answer, faults = words_of(ASK + COUNT_FAULTS)
    assert answer == "True"
    assert int(faults) < 1000  # 4 x 256 MiB are 2,048 huge pages if they are new, 262,144 small ones


def test_the_users_own_thresholds_stay() -> None:
    assert words_of(ASK, MALLOC_MMAP_THRESHOLD_="131072") == ["False"]
