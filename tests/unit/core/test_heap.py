"""The C heap: freed memory goes back to the system."""

import subprocess
import sys

import pytest

from foveate.core.heap import limit_heap, trim_heap

MEASURE = """
from foveate.core.heap import limit_heap, trim_heap
def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
limit_heap()
bytearray(30 * 2**20)                    # glibc would keep blocks of this size from now on
before = resident()
for block in [bytearray(25 * 2**20) for _ in range(4)]:
    pass
del block
print(resident() - before)               # large blocks
blocks = [bytes(2**16) for _ in range(2000)]
del blocks[:-1]                          # the last one keeps the heap from shrinking by itself
trim_heap()
print(resident() - before)               # small blocks
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is about glibc")
def test_freed_blocks_go_back_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert all(int(grown) < 20 * 2**20 for grown in run.stdout.split())


def test_calls_are_harmless_everywhere() -> None:
    limit_heap()
    trim_heap()
