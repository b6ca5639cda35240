"""Python packages for tests that cannot stand beside those of the environment, in a cache of the repository.

They are found before the environment's by a process whose PYTHONPATH begins with the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

_CACHE = Path(__file__).parents[1] / "build" / "python"
_INSTALL_SECONDS = 300

# It wants an older `openai` than others, and far more than is needed to import it: so no dependencies but these.
LITELLM = (
    "litellm==1.106.2",
    "openai==2.54.0",
    *("aiohappyeyeballs", "aiohttp", "aiosignal", "fastuuid", "frozenlist", "importlib-metadata<9", "multidict"),
    *("propcache", "pydantic-settings", "yarl", "zipp"),
)


def folder(name: str, packages: tuple[str, ...]) -> Path:
    """A folder with these packages and nothing else, installed on first use."""
    digest = hashlib.sha256(repr((packages, sys.version_info[:2])).encode()).hexdigest()[:16]
    home = _CACHE / f"{name}-{digest}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:  # Several test processes may want it at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / ".installed").exists():
            _install(home, packages)
    return home


def _install(home: Path, packages: tuple[str, ...]) -> None:
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-compile",
    )
    subprocess.run([*pip, "--target", str(home), *packages], timeout=_INSTALL_SECONDS, check=True)
    (home / ".installed").touch()
