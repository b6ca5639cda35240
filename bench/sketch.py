"""A sketch of a durable proxy: the same design as ours with nothing around it. aiohttp reads upstream, one asyncpg connection
commits what has gathered, and readers are fed from memory once it is committed.

It is what our checks are measured against. It knows no keys, limits, clocks, recovery, deletion, resumes or second process;
what a reader has not read stays in memory, and nothing is ever read from the database.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import socket
import sys

import aiohttp
import asyncpg
import uvicorn
import uvloop
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

_TABLES = """
create table streams (id bigint primary key, is_done boolean not null default false);
create table chunks (stream_id bigint, position bigint, data bytea not null, primary key (stream_id, position));
"""
_CLAIM = "insert into streams (id) values ($1)"
_APPEND = "insert into chunks select unnest($1::bigint[]), unnest($2::bigint[]), unnest($3::bytea[])"
_END = "update streams set is_done = true where id = any($1::bigint[])"


class Stream:
    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.position = 0
        self.pending: list[bytes] = []
        self.has_ended = self.is_closed = False
        self.frames: list[bytes] = []
        self.news = asyncio.Event()

    def publish(self, data: bytes, *, is_last: bool) -> None:
        """What is committed, as readers get it."""
        self.position += len(data)
        self.is_closed = is_last
        control = json.dumps({"streamNextOffset": f"{self.position:020}", "streamClosed": self.is_closed})
        event = b"event: data\ndata:" + base64.b64encode(data) + b"\n\n" if data else b""
        self.frames.append(event + b"event: control\ndata:" + control.replace(" ", "").encode() + b"\n\n")
        self.news.set()


class Sketch:
    def __init__(self, upstream: aiohttp.ClientSession, database: asyncpg.Pool[asyncpg.Record]) -> None:
        self._upstream = upstream
        self._database = database
        self._streams: dict[int, Stream] = {}
        self._ids = itertools.count(1)
        self._dirty: dict[Stream, None] = {}
        self._work = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        if scope["method"] == "GET":
            await self._read(self._streams.pop(int(scope["path"].rpartition("/")[2])), send)
            return
        body, is_whole = b"", False
        while not is_whole:
            message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            is_whole = not message["more_body"]
        stream = await self._create(dict(scope["headers"])[b"x-proxy-url"].decode(), body)
        answer = json.dumps({"streamUrl": f"/streams/{stream.stream_id}"}).encode()
        await _start(send, b"application/json", (b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.body", "body": answer, "more_body": False})

    async def _create(self, url: str, body: bytes) -> Stream:
        stream = Stream(next(self._ids))
        self._streams[stream.stream_id] = stream
        await self._database.execute(_CLAIM, stream.stream_id)
        response = await self._upstream.post(url, data=body, headers={"Content-Type": "application/json"})
        task = asyncio.create_task(self._record(stream, response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    async def _record(self, stream: Stream, response: aiohttp.ClientResponse) -> None:
        async for data in response.content.iter_any():
            stream.pending.append(data)
            self._dirty[stream] = None
            self._work.set()
        stream.has_ended = True
        self._dirty[stream] = None
        self._work.set()

    async def commit_for_ever(self) -> None:
        async with self._database.acquire() as connection:
            while True:
                await self._work.wait()
                self._work.clear()
                batch = [(stream, b"".join(stream.pending), stream.has_ended) for stream in self._dirty]
                self._dirty.clear()
                for stream, _, _ in batch:
                    stream.pending.clear()
                rows = [(stream.stream_id, stream.position, data) for stream, data, _ in batch if data]
                if rows:
                    await connection.execute(_APPEND, *map(list, zip(*rows, strict=True)))
                ended = [stream.stream_id for stream, _, is_last in batch if is_last]
                if ended:
                    await connection.execute(_END, ended)
                for stream, data, is_last in batch:
                    stream.publish(data, is_last=is_last)

    async def _read(self, stream: Stream, send: ASGISendCallable) -> None:
        await _start(send, b"text/event-stream")
        while stream.frames or not stream.is_closed:
            await stream.news.wait()
            stream.news.clear()
            body = b"".join(stream.frames)
            stream.frames.clear()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _start(send: ASGISendCallable, content_type: bytes, *headers: tuple[bytes, bytes]) -> None:
    start = [(b"content-type", content_type), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": start, "trailers": False})


async def _serve(listener: socket.socket) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        asyncpg.create_pool(os.environ["DATABASE_URL"]) as database,
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as upstream,
    ):
        await database.execute(_TABLES)
        app = Sketch(upstream, database)
        committing = asyncio.create_task(app.commit_for_ever())
        config = uvicorn.Config(app, http="httptools", log_level="warning", access_log=False, lifespan="off")
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])
        committing.cancel()


def main() -> int:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        uvloop.run(_serve(listener))
    return 0


if __name__ == "__main__":
    sys.exit(main())
