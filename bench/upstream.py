"""The fake upstream: a process that streams stamped chunks at a steady rate, and remembers a digest of what it sent.

`GET` or `POST /v1/chat/completions?id&rate&chunk_bytes&chunks` streams; `GET /sent` tells what was sent since it was last
asked. It writes at its own pace whatever the peer does, as a model server does: a peer that reads too slowly makes the
bytes late, and lateness is what is measured. Times are stamped when a chunk is written, not when it was due; how late
writing itself was is reported apart, since that is this process's fault.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import httptools
import uvloop

from bench.histogram import Histogram
from bench.workload import LAST, ChunkWriter

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
_BACKLOG = 4096


class Stream:
    """One stream being sent, and afterwards the record of it."""

    def __init__(self, transport: asyncio.Transport, writer: ChunkWriter, *, rate: float, chunks: int) -> None:
        self.asked_at_ns = self.answered_at_ns = 0
        self.sent_chunks = 0
        self.sent_bytes = 0
        self.is_complete = False
        self._transport = transport
        self._writer = writer
        self._interval_seconds = 1 / rate
        self._chunks = chunks
        self._digest = hashlib.sha256()
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, asked_at_ns: int, lateness: Histogram) -> None:
        self.asked_at_ns = asked_at_ns
        self._transport.write(_STREAM_HEAD)
        self.answered_at_ns = time.monotonic_ns()
        self._due_at = asyncio.get_running_loop().time()
        self._send(lateness)

    def stop(self) -> None:
        """The peer is gone."""
        if self._timer is not None:
            self._timer.cancel()

    def to_json(self) -> dict[str, Any]:
        return {
            "chunks": self.sent_chunks,
            "bytes": self.sent_bytes,
            "sha256": self._digest.hexdigest(),
            "answerNs": self.answered_at_ns - self.asked_at_ns,
            "isComplete": self.is_complete,
        }

    def _send(self, lateness: Histogram) -> None:
        loop = asyncio.get_running_loop()
        lateness.record(int((loop.time() - self._due_at) * 1e9))
        chunk = self._writer.chunk(time.monotonic_ns())
        self._write(chunk)
        self.sent_chunks += 1
        if self.sent_chunks < self._chunks:
            self._due_at += self._interval_seconds
            self._timer = loop.call_at(self._due_at, self._send, lateness)
            return
        self._write(LAST)
        self._transport.write(b"0\r\n\r\n")
        self.is_complete = True

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self.sent_bytes += len(data)
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


class Record:
    """Everything that was sent since it was last taken."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.lateness = Histogram()

    def take(self) -> bytes:
        found = {
            "streams": {stream_id: stream.to_json() for stream_id, stream in self.streams.items()},
            "lateness": self.lateness.to_json(),
        }
        self.streams, self.lateness = {}, Histogram()
        return json.dumps(found).encode()


class Connection(asyncio.Protocol):
    """One peer's connection; one request at a time."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._received_at_ns = 0
        self._target = b""
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop registers its transports with no class of asyncio.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.stop()

    def data_received(self, data: bytes) -> None:
        self._received_at_ns = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            assert self._transport is not None
            self._transport.abort()

    # Called by the parser

    def on_message_begin(self) -> None:
        self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_message_complete(self) -> None:
        assert self._transport is not None
        url = urlsplit(self._target.decode("ascii"))
        if url.path == "/sent":
            body = self._record.take()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        elif url.path == "/v1/chat/completions":
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            self._stream = self._record.streams[query["id"]] = Stream(
                self._transport,
                ChunkWriter(query["id"], int(query["chunk_bytes"])),
                rate=float(query["rate"]),
                chunks=int(query["chunks"]),
            )
            self._stream.start(self._received_at_ns, self._record.lateness)
        else:
            self._transport.write(_NOT_FOUND)


async def main() -> None:
    """Serve on a free port until killed; the first line of output is the base URL."""
    record = Record()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(record), "127.0.0.1", 0, backlog=_BACKLOG
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
