"""Bytes to standard output."""

from __future__ import annotations

import sys


def write(data: bytes) -> None:
    """Write all of it, at once. An unbuffered output may take a part only, and tell of a closed pipe at the next one."""
    left = memoryview(data)
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()
