"""`streamkeep demo python-terminal`: an answer is cut in two before your eyes, and comes out whole.

It starts the proxy and the fake vendor, lets one process read an answer, kills that process in the middle, and lets
another one read on. Both do what a program of yours would: `FetchClient`, and one header to resume.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import httpx

from streamkeep.client import FetchClient, SQLiteStore

_SESSION = "demo"
_BYTES_PER_TOKEN = 250
_URL = re.compile(r"http://127\.0\.0\.1:[0-9]+")
_CONTENT = re.compile(rb'"delta":\{[^}]*"content":"((?:[^"\\]|\\.)*)"')


def run(environ: Mapping[str, str], *, tokens: int, rate: float) -> int:
    """Show it; the exit code is 0 when all bytes came, and the vendor was called once."""
    with tempfile.TemporaryDirectory(prefix="streamkeep-demo-") as folder:
        return _show(environ, Path(folder), tokens, rate)


def read(proxy_url: str, vendor_url: str, folder: Path, *, resume: bool) -> None:
    """What the reading program does: fetch or resume, show each piece, and keep what it has taken in a file."""
    headers = {"X-Session-ID": _SESSION, "X-Resume-Active-Generation": "true" if resume else "false"}
    question = [{"role": "user", "content": "Tell me a story"}]
    body = {"model": "demo", "stream": True, "messages": question, "metadata": {"fake-text": "markdown"}}
    store = SQLiteStore(folder / "client.sqlite3")
    with FetchClient(proxy_url, store=store) as client:
        response = client.fetch(f"{vendor_url}/v1/chat/completions", method="POST", headers=headers, json=body)
        with (folder / "taken").open("r+b" if resume else "wb") as taken:
            taken.seek(int(response.headers.get("Streamkeep-Start-Offset", "0")))
            for data in response.iter_bytes():
                taken.write(data)
                taken.flush()
                # The second one's words in another colour: where they begin is where the first one died.
                click.secho(_text(data), nl=False, fg="cyan" if resume else "yellow")


def _show(environ: Mapping[str, str], folder: Path, tokens: int, rate: float) -> int:
    _say("Starting the proxy with an empty database of its own, and a vendor that fakes a model.")
    vendor = [sys.executable, "-m", "streamkeep.proxy", "vendor", "--port", "0"]
    inherited = {name: value for name, value in environ.items() if not name.startswith("STREAMKEEP_")}
    inherited.pop("DATABASE_URL", None)
    with (
        _server([*vendor, "--tokens", str(tokens), "--rate", str(rate)], inherited) as vendor_url,
        _server(
            [sys.executable, "-m", "streamkeep.proxy", "serve", "--port", "0"],
            {
                **inherited,
                "STREAMKEEP_ALLOW": f"{vendor_url}/**",
                "STREAMKEEP_DATA_DIR": str(folder / "server"),
                "STREAMKEEP_LOG_LEVEL": "error",
            },
        ) as proxy_url,
    ):
        reader = [sys.executable, "-m", "streamkeep.demos.terminal", proxy_url, vendor_url, str(folder)]
        _say("A program asks for an answer. It will be killed in the middle.")
        with subprocess.Popen(reader) as program:
            while program.poll() is None and _size(folder / "taken") < tokens * _BYTES_PER_TOKEN / 2:
                time.sleep(0.02)
            program.send_signal(signal.SIGKILL)
        before = (folder / "taken").stat().st_size
        _say(f"\nkill -9. It had taken {before} bytes. The vendor goes on talking, and nobody listens.")
        _say("Another program resumes:")
        subprocess.run([*reader, "--resume"], check=True)
        return _compare(folder, proxy_url, vendor_url, before)


def _compare(folder: Path, proxy_url: str, vendor_url: str, before: int) -> int:
    taken = (folder / "taken").read_bytes()
    found = httpx.get(f"{proxy_url}/api/{_SESSION}/active").json()[0]
    event = httpx.get(found["controlUrl"]).json()[0]
    calls = httpx.get(f"{vendor_url}/_fake/calls").json()["count"]
    is_equal = hashlib.sha256(taken).hexdigest() == event["sha256"]
    _say(f"\nTaken by the first: {before} bytes. By both: {len(taken)} bytes. Sent by the vendor: {event['bytes']}.")
    _say(f"The bytes are {'equal' if is_equal else 'NOT equal'} (sha256 {event['sha256'][:16]}…).")
    _say(f"The vendor was called {calls} time{'' if calls == 1 else 's'}. The answer ended as: {event['code']}.")
    return 0 if is_equal and calls == 1 and before < len(taken) else 1


@contextmanager
def _server(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[str]:
    """A server in a process of its own; its URL, which stands in the first line that it prints."""
    with subprocess.Popen(command, env=dict(environ), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = _URL.search(process.stdout.readline())
            if found is None:
                raise SystemExit(f"streamkeep demo: {command[3]} did not start")
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _text(data: bytes) -> str:
    """The words in a piece of the stream; the demo's vendor never splits an event."""
    return "".join(json.loads(b'"%b"' % match) for match in _CONTENT.findall(data))


def _say(text: str) -> None:
    click.secho(text, bold=True)


if __name__ == "__main__":
    read(sys.argv[1], sys.argv[2], Path(sys.argv[3]), resume="--resume" in sys.argv[4:])
