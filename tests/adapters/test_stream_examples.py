"""The examples that work on streams, as programs."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamkeep.client import AsyncDurableStream
from streamkeep.proxy.vendor import Plan
from tests import node
from tests.serving import Proxy, vendor_in_a_thread

EXAMPLES = Path(__file__).parents[2] / "examples"
INTEROP = Path(__file__).parents[1] / "interop"


@pytest.fixture
def vendor() -> Iterator[str]:
    """A vendor whose answers take a second, long enough to be killed in."""
    with vendor_in_a_thread(Plan(tokens=60, rate=60)) as url:
        yield url


async def start(
    *command: str | Path, environ: dict[str, str] | None = None, output: int = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*command, stdout=output, env={**os.environ, **(environ or {})})


async def run(*command: str | Path) -> str:
    """What a program says that ends well."""
    process = await start(*command)
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_a_cron_job_appends_with_curl_alone(proxy: Proxy, session: str) -> None:
    url = f"{proxy.url}/v1/stream/cron/{session}"
    for number in range(2):
        await run(EXAMPLES / "cron.sh", url, "echo", f"run {number}")
    assert (await proxy.client.get(url)).text == "run 0\nrun 1\n"


async def test_the_line_for_a_crontab_works(proxy: Proxy, session: str) -> None:
    [line] = re.findall(r"^#     \S+ \* \* \* \* (.*)$", (EXAMPLES / "cron.sh").read_text(), re.MULTILINE)
    url = f"{proxy.url}/v1/stream/cron/{session}"
    await proxy.client.put(url, headers={"Content-Type": "text/plain"})
    await run("sh", "-c", re.sub(r"http://\S+", url, line))
    assert "Filesystem" in (await proxy.client.get(url)).text


async def test_a_stock_is_the_sum_of_its_events_whoever_takes_at_once(proxy: Proxy, session: str) -> None:
    def change(amount: str) -> tuple[str, ...]:
        return (sys.executable, str(EXAMPLES / "event_sourcing.py"), f"{proxy.url}/v1/stream/{session}", amount)

    assert await run(*change("+3")) == "in stock: 3\n"
    said = await asyncio.gather(*(run(*change("-1")) for _ in range(4)))
    assert sorted(said) == [*(f"in stock: {left}\n" for left in range(3)), "refused: there is not as much\n"]
    assert await run(*change("0")) == "in stock: 0\n"


async def test_a_workflow_goes_on_after_a_kill_and_does_nothing_twice(
    proxy: Proxy, vendor: str, session: str, tmp_path: Path
) -> None:
    async def calls() -> int:
        count: int = (await proxy.client.get(f"{vendor}/_fake/calls")).json()["count"]
        return count

    async def begin() -> asyncio.subprocess.Process:
        command = (sys.executable, EXAMPLES / "workflow.py", proxy.url, vendor, session)
        return await start(*command, environ={"XDG_STATE_HOME": str(tmp_path)})

    before = await calls()
    # Killed with its first call under way, and again when the first step is done and the second is under way.
    for under_way in (1, 2):
        killed = await begin()
        async with asyncio.timeout(60):
            while await calls() < before + under_way:
                await asyncio.sleep(0.01)
        killed.kill()
        await killed.communicate()
    last = await begin()
    output, _ = await last.communicate()
    assert (last.returncode, await calls()) == (0, before + 3)
    assert [line.partition(":")[0] for line in output.decode().splitlines()] == ["outline", "draft", "title"]
    recorded = (await proxy.client.get(f"/v1/stream/workflows/{session}")).json()
    assert [event["step"] for event in recorded] == ["outline", "draft", "title"]


async def test_one_url_is_read_by_python_npm_and_curl_at_once(proxy: Proxy, session: str, tmp_path: Path) -> None:
    url = f"{proxy.url}/v1/stream/{session}"
    home = await asyncio.to_thread(node.project, INTEROP)
    script = home / f"{session}.mjs"
    shutil.copy(EXAMPLES / "read.mjs", script)
    lines = [f"line {number} ☃\n" for number in range(50)]
    try:
        async with await AsyncDurableStream.create(url, content_type="text/plain", data=lines[0]) as stream:
            readers = [
                await start(sys.executable, EXAMPLES / "read.py", url),
                await start(node.NODE, script, url),
                await start(EXAMPLES / "read.sh", url),
            ]
            # Each has the beginning before there is more.
            heard = [await first_line(reader) for reader in readers]
            for line in lines[1:]:
                await stream.append(line)
            await stream.close()
            async with asyncio.timeout(60):
                rests = await asyncio.gather(*(reader.communicate() for reader in readers))
    finally:
        script.unlink()
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    python, npm, curl = (begun + rest[0].decode() for begun, rest in zip(heard, rests, strict=True))
    assert python == npm == "".join(lines)
    assert re.findall(r"line \d+ ☃", curl) == [line.rstrip() for line in lines]
    assert '"streamClosed":true' in curl


async def first_line(reader: asyncio.subprocess.Process) -> str:
    """What a reader says, up to the end of the stream's first line."""
    assert reader.stdout is not None
    said = b""
    async with asyncio.timeout(60):
        while "☃\n".encode() not in said:
            said += await reader.stdout.readline()
    return said.decode()


async def test_every_example_is_named_where_people_look() -> None:
    guide = (EXAMPLES / "README.md").read_text("utf-8")
    named = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".mjs")}
    assert {name for name in named if f"]({name})" not in guide} == set()
