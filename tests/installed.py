"""Run an installed command that serves as an operator would, with a tiny upstream for it to call."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.serving import CERTIFICATES

READY_WITHIN_SECONDS = 240.0
STOPPED_WITHIN_SECONDS = 30.0

UPSTREAM_CHUNKS = (b"data: one\n\n", b"data: \xc3\xa4", b"\xff\n\n")
UPSTREAM_BODY = b"".join(UPSTREAM_CHUNKS)

_WITH_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
)


@dataclass(slots=True)
class Running:
    """A running command: where it answers and what it printed."""

    url: str
    process: subprocess.Popen[bytes]
    output_path: Path

    @property
    def output(self) -> str:
        return self.output_path.read_text("utf-8", "replace")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"it ended by itself:\n{self.output}"
        try:
            return httpx.get(f"{self.url}/ready", verify=CERTIFICATES, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def terminate(self) -> int:
        """SIGTERM to the command alone; its exit code."""
        self.process.terminate()
        return self.process.wait(STOPPED_WITHIN_SECONDS)

    def interrupt(self) -> int:
        """SIGINT to the command and its children, as a terminal does on Ctrl-C; its exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(STOPPED_WITHIN_SECONDS)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str | Path], *, environ: Mapping[str, str], cwd: Path, logs: Path) -> Iterator[Running]:
    """Run a command from the moment its `/ready` answers 200; killed at the end of the block unless it was stopped.

    `environ` is its whole environment, with the port in `STREAMKEEP_PORT`; its output goes to a file in `logs`.
    """
    port = environ["STREAMKEEP_PORT"]
    output_path = logs / f"output-{port}.log"
    with output_path.open("wb") as output:
        process = subprocess.Popen(
            # A test run in the background of a script ignores SIGINT, and its children would inherit that.
            [sys.executable, "-c", _WITH_SIGINT, *command],
            env=environ,
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    command_running = Running(f"http://127.0.0.1:{port}", process, output_path)
    try:
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while not command_running.is_ready():
            assert time.monotonic() < deadline, f"not ready in time:\n{command_running.output}"
            time.sleep(0.05)
        yield command_running
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def tiny_upstream() -> Iterator[str]:
    """A vendor that answers every POST with `UPSTREAM_CHUNKS`; its URL."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in [*UPSTREAM_CHUNKS, b""]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def read_to_the_end(url: str) -> bytes:
    """A stream's bytes, by long-polls."""
    body, offset = b"", "-1"
    while True:
        query = httpx.URL(url).params.merge({"offset": offset, "live": "long-poll"})
        answer = httpx.get(url, params=query, verify=CERTIFICATES, timeout=30)
        assert answer.status_code in {200, 204}, answer.text
        body, offset = body + answer.content, answer.headers["Stream-Next-Offset"]
        if answer.headers.get("Stream-Closed") == "true":
            return body
