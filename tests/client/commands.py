"""The `streamkeep` command as tests run it: a program, with a state directory of the test's own."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
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

    async def here(self, *arguments: str) -> Ended:
        """The same in a thread of this process, which costs less: for commands without signals, standard input and a place
        where they run. One at a time, since all threads have one standard output."""
        return await asyncio.to_thread(self._here, arguments)

    def _here(self, arguments: tuple[str, ...]) -> Ended:
        with CliRunner().isolation(env=self.environ) as (out, err, _):
            code = main(arguments)
            return Ended(code, out.getvalue(), err.getvalue().decode())
