"""The `streamkeep` command as tests run it: a program, with a state directory of the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
import termios
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from streamkeep.client.__main__ import main


@dataclass(frozen=True, slots=True)
class Ended:
    code: int | None
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True, slots=True)
class Program:
    """Runs the command in an environment."""

    environ: dict[str, str]

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "streamkeep.client", *arguments]
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environ)

    async def __call__(self, *arguments: str, stdin: bytes = b"") -> Ended:
        process = await self.start(*arguments)
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin)
        return Ended(process.returncode, out, err.decode())

    async def on_terminal(self, *arguments: str, stdin: Path | None = None, **environ: str) -> Ended:
        """Run it on a terminal, whose whole text is `out`; `stdin` is a file to read instead."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 120))
        source = theirs if stdin is None else os.open(stdin, os.O_RDONLY)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "streamkeep.client", *arguments),
            stdin=source,
            stdout=theirs,
            stderr=theirs,
            env={**self.environ, "TERM": "xterm-256color", **environ},
        )
        for terminal in {source, theirs}:
            os.close(terminal)
        shown = await asyncio.to_thread(_all_from, ours)
        async with asyncio.timeout(60):
            return Ended(await process.wait(), shown, "")

    async def here(self, *arguments: str) -> Ended:
        """The same in a thread of this process, which costs less: for commands without signals, standard input and a place
        where they run. One at a time, since all threads have one standard output."""
        return await asyncio.to_thread(self._here, arguments)

    def _here(self, arguments: tuple[str, ...]) -> Ended:
        with CliRunner().isolation(env=self.environ) as (out, err, _):
            code = main(arguments)
            return Ended(code, out.getvalue(), err.getvalue().decode())


def _all_from(terminal: int) -> bytes:
    """What is written to a terminal until nobody has it any more."""
    shown = b""
    with suppress(OSError), open(terminal, "rb", buffering=0) as screen:
        while piece := screen.read(65_536):
            shown += piece
    return shown
