"""Freed memory stays with the process: buffers of a batch's size are cleared by the system once, not each time."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from training.fit.strategy import keep_freed_memory

def faults():
    for turn in range(40):
        if turn == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"x" * (40_000_000 + turn)  # no constant
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
assert keep_freed_memory()
print(default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_buffer_is_cleared_by_the_system_once():
    # In a process of its own: it cannot be undone. Pages are of 4 kB, or of 2 MB where the system has large ones.
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    default, kept = map(int, done.stdout.split())
    assert default >= 30 * 10 and kept < default / 20
