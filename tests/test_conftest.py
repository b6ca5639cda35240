"""What the fixtures for all tests promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

TESTS = """
import socket

from tests.conftest import blamed_for_what_it_left_open

def test_that_fails():
    peer = socket.socket()
    raise AssertionError

def test_that_comes_next():
    pass
"""


def test_what_a_failed_test_left_open_fails_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "test_two.py"
    file.write_text(TESTS)
    options = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert re.search(r"^ERROR \S*::test_that_fails", run.stdout, re.MULTILINE)
    assert "1 failed, 1 passed, 1 error" in run.stdout
