"""The adapter for the public client suite, by both shells, against a served proxy: what it is told, it does."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from streamkeep.storage import MemoryStore
from tests.serving import serving

ADAPTER = Path(__file__).parent / "client_adapter.py"

Tell = Callable[..., Coroutine[Any, Any, dict[str, Any]]]


@asynccontextmanager
async def adapter(shell: str) -> AsyncIterator[Tell]:
    """The adapter in a process of its own, as the suite runs it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ADAPTER), shell), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def tell(type: str, **fields: Any) -> dict[str, Any]:
        stdin.write(json.dumps({"type": type, **fields}).encode() + b"\n")
        async with asyncio.timeout(30):
            found: dict[str, Any] = json.loads(await stdout.readline())
        return found

    try:
        yield tell
        assert await tell("shutdown") == {"type": "shutdown", "success": True}
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("shell", ["sync", "async"])
async def test_the_adapter_does_what_it_is_told(shell: str) -> None:
    async with serving(MemoryStore(), long_poll_seconds=0.3) as proxy, adapter(shell) as tell:
        hello = await tell("init", serverUrl=f"{proxy.url}/v1/stream")
        assert all(hello["features"].values())
        stream: dict[str, Any] = {"path": "/adapter"}
        assert (await tell("create", **stream, contentType="application/json"))["status"] == 201
        assert (await tell("create", **stream, contentType="application/json"))["status"] == 200
        assert (await tell("create", **stream, contentType="text/plain"))["errorCode"] == "CONFLICT"
        await tell("set-dynamic-header", name="X-Count", valueType="counter")
        assert (await tell("append", **stream, data='{"n": 1}', seq=2))["headersSent"] == {"X-Count": "1"}
        assert (await tell("append", **stream, data="1", seq=1))["errorCode"] == "SEQUENCE_CONFLICT"
        await tell("clear-dynamic")
        produced = {**stream, "producerId": "p", "epoch": 0, "autoClaim": False}
        for _ in range(2):
            batch = await tell("idempotent-append-batch", **produced, items=["2", "[3]", "4"], maxInFlight=3)
            assert batch["success"]
        assert (await tell("idempotent-append", **produced, data="5"))["status"] == 200
        for live in (False, "sse", "long-poll", True):
            read = await tell("read", **stream, live=live, waitForUpToDate=True)
            assert "".join(chunk["data"] for chunk in read["chunks"]) == '[{"n":1},2,[3],4,5]'
            assert (read["upToDate"], read["streamClosed"]) == (True, False)
        idle = await tell("read", **stream, offset=read["offset"], live="long-poll", timeoutMs=500)
        assert (idle["status"], idle["chunks"]) == (204, [])
        closings = [await tell("idempotent-close", **produced, data=data) for data in ("6", "7")]
        assert closings[0]["finalOffset"] == (await tell("head", **stream))["offset"]
        assert [closing["success"] for closing in closings] == [True, True]
        assert (await tell("append", **stream, data="8"))["errorCode"] == "STREAM_CLOSED"
        assert (await tell("read", **stream, offset="x"))["errorCode"] == "INVALID_OFFSET"
        await tell("delete", **stream)
        gone = await tell("read", **stream)
        assert (gone["errorCode"], gone["status"], "/adapter" in gone["message"]) == ("NOT_FOUND", 404, True)
        refused = await tell("validate", target={"target": "retry-options", "maxDelayMs": 1, "initialDelayMs": 2})
        assert (refused["errorCode"], "maxDelayMs" in refused["message"]) == ("INVALID_ARGUMENT", True)
        assert (await tell("nonsense"))["errorCode"] == "NOT_SUPPORTED"
