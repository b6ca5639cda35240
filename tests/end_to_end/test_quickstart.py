"""The curl lines of the README's quickstart for the open protocol, run as they stand; only the port is another."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from streamkeep.storage import MemoryStore
from tests.serving import serving

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_the_quickstart_runs_as_it_is_printed() -> None:
    section = README.read_text("utf-8").partition("## Durable Streams quickstart")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    lines = [line for line in block[1].splitlines() if line.startswith("curl ")]
    async with serving(MemoryStore()) as proxy:
        address = proxy.url.removeprefix("http://")
        answers = [await shell(line.replace("127.0.0.1:4000", address)) for line in lines]
    create, first, second, read, resume, long_poll, close, sse = answers
    assert "201 Created" in create
    assert all("204 No Content" in answer for answer in (first, second, close))
    assert read.endswith("first second ")
    assert first.lower().count("stream-next-offset: 0000000000000000_0000000000000006") == 1
    assert resume.endswith("\nsecond ")
    assert long_poll.endswith("\nsecond ")
    assert "stream-closed: true" in close.lower()
    assert "data:first second third" in sse
    assert '"streamClosed":true' in sse


async def shell(line: str) -> str:
    """What a line prints, as a shell runs it."""
    process = await asyncio.create_subprocess_shell(
        line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, line
    return output.decode().replace("\r", "")
