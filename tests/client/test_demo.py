"""The demo is the promise in one command, so it is held to it."""

from __future__ import annotations

import subprocess
import sys


def test_the_demo_shows_equal_bytes_and_one_call() -> None:
    command = [sys.executable, "-m", "streamkeep.client", "demo", "--tokens", "40", "--rate", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The bytes are equal" in done.stdout
    assert "The vendor was called 1 time." in done.stdout
    assert "kill -9" in done.stdout
