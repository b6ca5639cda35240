"""A server for the clients to be measured on: one body of small chunks, as upstream sends it and as the proxy does.

`/plain` is upstream: an HTTP chunk for each chunk. `POST /api/…` with that as `X-Proxy-Url` gives the URLs of a
generation whose data stream holds the same body, in the frames that the proxy makes. `together` chunks are sent at
once, then nothing for a moment, so that a client that keeps up reads just those. They are one frame where `is_burst`,
as when upstream sent them at once and they were committed as one; else each has its own, as when the client lags.
"""

from __future__ import annotations

import json
import socketserver
import time
from urllib.parse import parse_qs, urlsplit

from streamkeep.proxy.rules import sse
from streamkeep.storage.rules.offsets import format_offset

CHUNK = (b"data: " + b"streamkeep " * 20)[:198] + b"\n\n"

_PAUSE_SECONDS = 0.0002
_CURSOR = "12345"
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENTS = _PLAIN.replace(b"\r\n\r\n", b"\r\nstream-sse-data-encoding: base64\r\n\r\n")


class Replay(socketserver.StreamRequestHandler):
    """One connection, and its requests one after the other."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            target = line.split()[1].decode("ascii")
            fields = {}
            while (field := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = field.decode("latin-1").partition(":")
                fields[name.lower()] = value.strip()
            self.rfile.read(int(fields.get("content-length", "0")))
            self._answer(target, fields)

    def _answer(self, target: str, fields: dict[str, str]) -> None:
        path = urlsplit(target).path
        query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        chunks, together = int(query.get("chunks", "0")), int(query.get("together", "1"))
        if path == "/plain":
            self._stream(_PLAIN, [b"c8\r\n%b\r\n" % CHUNK * together] * (chunks // together))
        elif path.startswith("/api/"):
            self._create(fields)
        elif path == "/stream/control":
            size = chunks * len(CHUNK)
            self._json([{"event": "done", "code": "complete", "offset": format_offset(size)}])
        elif "live" in query:
            each = together if query["is_burst"] == "True" else 1
            frames = [_frame(at, each, is_last=at + each == chunks) for at in range(0, chunks, each)]
            writes = [b"".join(frames[at : at + together // each]) for at in range(0, len(frames), together // each)]
            self._stream(_EVENTS, writes)
        else:
            self._head({"content-length": "0", "stream-next-offset": format_offset(0), "stream-up-to-date": "true"})

    def _create(self, fields: dict[str, str]) -> None:
        asked = urlsplit(fields["x-proxy-url"]).query
        stream = f"http://{fields['host']}/stream"
        self._json(
            {
                "sessionId": "bench",
                "requestId": "1",
                "state": "running",
                "contentType": "text/event-stream",
                "upstreamStatus": 200,
                "upstreamHeaders": {},
                "streamUrl": f"{stream}/data?{asked}",
                "controlUrl": f"{stream}/control?{asked}",
            }
        )

    def _json(self, found: object) -> None:
        body = json.dumps(found).encode()
        self._head({"content-type": "application/json", "content-length": str(len(body))}, body)

    def _head(self, fields: dict[str, str], body: bytes = b"") -> None:
        lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self.wfile.write("\r\n".join(lines).encode() + body)

    def _stream(self, head: bytes, writes: list[bytes]) -> None:
        self.wfile.write(head)
        for write in writes:
            self.wfile.write(write)
            time.sleep(_PAUSE_SECONDS)
        self.wfile.write(b"0\r\n\r\n")


def _frame(first: int, count: int, *, is_last: bool) -> bytes:
    """One HTTP chunk with the two events that tell of so many chunks."""
    offset = format_offset((first + count) * len(CHUNK))
    data = sse.base64_frame(CHUNK * count, offset)
    told = sse.closing_frame(offset) if is_last else sse.control_frame(offset, _CURSOR, is_up_to_date=True)
    return b"%x\r\n%b\r\n" % (len(data) + len(told), data + told)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    disable_nagle_algorithm = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is no fault."""


def main() -> None:
    """Serve on a free port until killed; the first line of output is the base URL."""
    Replay.disable_nagle_algorithm = True
    with _Server(("127.0.0.1", 0), Replay) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
