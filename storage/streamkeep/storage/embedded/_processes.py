"""What the kernel says about processes: a pid in a file may be anybody's by now."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

_POLL_SECONDS = 0.02


def server_processes(cluster: Path) -> set[int]:
    """The pids of all Postgres processes that work on a data directory, with or without a postmaster above them.

    Postgres makes the data directory its working directory. A zombie has none any more, and holds nothing: not listed.
    """
    if not Path("/proc/self/cwd").exists():
        return _postmasters_by_command_line(cluster)
    return {int(name) for name in os.listdir("/proc") if name.isdecimal() and _is_server_process(name, cluster)}


def _is_server_process(pid: str, cluster: Path) -> bool:
    try:
        is_inside = os.readlink(f"/proc/{pid}/cwd") == str(cluster)
        return is_inside and Path(f"/proc/{pid}/comm").read_text() == "postgres\n"
    except OSError:  # Ended meanwhile, or another user's.
        return False


def _postmasters_by_command_line(cluster: Path) -> set[int]:
    """Where there is no /proc: postmasters only, since their children do not name the directory."""
    listed = subprocess.run(["ps", "-axwwo", "pid=,command="], capture_output=True, text=True, check=False).stdout
    rows = [line.strip().split(maxsplit=1) for line in listed.splitlines()]
    mark = f"postgres -D {cluster} "
    return {int(row[0]) for row in rows if len(row) == 2 and mark in f"{row[1]} "}


def wait_for_end(cluster: Path, *, patience_seconds: float) -> Collection[int]:
    """Wait until no server process works on a data directory. Returns those that still do when patience ends."""
    deadline = time.monotonic() + patience_seconds
    while (remaining := server_processes(cluster)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return remaining


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; nothing happens when the process is gone or another user's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
