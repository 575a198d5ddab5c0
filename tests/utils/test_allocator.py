"""Freed blocks stay with the process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")

ASK = "from utils.allocator import keep_freed_memory; print(keep_freed_memory())"
# The fewest page faults of making and freeing the same 256 MiB: a system short of memory may take pages at any time.
COUNT_FAULTS = """
import resource
import torch
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(30):  # some ten until the blocks have found their places
    before = faults()
    torch.ones(64 << 20)
    counts.append(faults() - before)
print(min(counts))
"""


def words_of(program: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_", "LD_PRE"))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean | environment)
    return done.stdout.split()


def test_freed_blocks_are_not_touched_again_as_new_pages() -> None:
    answer, faults = words_of(ASK + COUNT_FAULTS)
    assert answer == "True"
    assert int(faults) < 64  # new, they are 128 huge pages or 65,536 small ones
    [without] = words_of(COUNT_FAULTS)
    assert int(without) >= 128


def test_the_users_own_thresholds_stay() -> None:
    assert words_of(ASK, MALLOC_MMAP_THRESHOLD_="131072") == ["False"]
