"""The proxy as tests use it: a real uvicorn on 127.0.0.1, in this loop or in a process of its own that may be killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from streamkeep.proxy import Settings, create_app
from streamkeep.proxy.rules.allowlist import Allowlist
from streamkeep.proxy.server import bind, make_server
from streamkeep.proxy.service import Service
from streamkeep.proxy.upstream import Resolver, system_resolver
from streamkeep.proxy.vendor import Plan, create_vendor_app
from streamkeep.storage import MemoryStore, Store
from streamkeep.storage.remote import RemoteStore

# A generation has ended within 15 s of its owner's death; and time for a busy machine.
AFTER_DEATH_SECONDS = 30.0

# Loaded once: each client would take a while to load them for itself.
CERTIFICATES = httpx.create_ssl_context()

ANY_LOCAL = Allowlist.parse(["http://127.0.0.1:*/**", "http://localhost:*/**"])


class Shorthands:
    """What tests ask of a proxy, wherever it runs."""

    client: httpx.AsyncClient

    async def create(
        self, session_id: str, request_id: str, url: str, *, body: bytes = b"{}", method: str = "POST", **headers: str
    ) -> httpx.Response:
        """`POST /api/{session}/{request}` for an upstream URL."""
        sent = {"X-Proxy-Url": url, "X-Proxy-Method": method, **{k.replace("_", "-"): v for k, v in headers.items()}}
        return await self.client.post(f"/api/{session_id}/{request_id}", content=body, headers=sent)

    async def read(self, session_id: str, request_id: str, which: str = "data", **query: str) -> httpx.Response:
        """One read of a generation's stream."""
        return await self.client.get(
            f"/stream/{which}", params={"sessionId": session_id, "requestId": request_id, **query}
        )

    async def read_all(self, session_id: str, request_id: str, offset: str = "-1") -> bytes:
        """Long-poll until the stream is closed; all bytes from an offset on."""
        body = b""
        async with asyncio.timeout(60):
            while True:
                answer = await self.read(session_id, request_id, offset=offset, live="long-poll")
                assert answer.status_code in (200, 204), answer.text
                body += answer.content
                offset = answer.headers["Stream-Next-Offset"]
                if answer.headers.get("Stream-Closed") == "true":
                    return body

    async def read_all_patiently(self, session_id: str, request_id: str) -> bytes:
        """All bytes, as a client gets them that comes back after every refusal."""
        body = b""
        async with asyncio.timeout(90):
            while True:
                offset = f"{0:016d}_{len(body):016d}"
                answer = await self.read(session_id, request_id, offset=offset, live="long-poll")
                if answer.status_code not in (200, 204):
                    assert answer.status_code == 503, answer.text
                    await asyncio.sleep(0.1)
                    continue
                body += answer.content
                if answer.headers.get("Stream-Closed") == "true":
                    return body

    async def available(self, size: int, session_id: str = "chat", request_id: str = "1") -> bytes:
        """Wait until so many bytes are readable; those bytes."""
        async with asyncio.timeout(60):
            while True:
                answer = await self.read(session_id, request_id)
                if answer.status_code == 200 and len(answer.content) >= size:
                    return answer.content
                await asyncio.sleep(0.02)

    async def cancel(self, session_id: str, request_id: str) -> str:
        """Cancel, and ask again while the end is not written yet; the state."""
        async with asyncio.timeout(60):
            while True:
                answer = await self.client.post(f"/api/{session_id}/{request_id}/cancel")
                assert answer.status_code == 200, answer.text
                if (state := answer.json()["state"]) != "cancelling":
                    return str(state)

    async def ending(self, session_id: str, request_id: str) -> dict[str, Any]:
        """Wait for the one terminal event."""
        async with asyncio.timeout(60):
            while True:
                answer = await self.read(session_id, request_id, "control", offset="-1", live="long-poll")
                assert answer.status_code in (200, 204), answer.text
                if answer.status_code == 200:
                    events = answer.json()
                    assert len(events) == 1
                    event: dict[str, Any] = events[0]
                    return event


@dataclass
class Proxy(Shorthands):
    """A served proxy: its base URL, its parts, and a client for it."""

    url: str
    app: FastAPI
    client: httpx.AsyncClient

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service


def local_settings(**changes: Any) -> Settings:
    """Settings for tests: any upstream on this machine may be called; short holds."""
    return Settings(**{"allow": ANY_LOCAL, "long_poll_seconds": 2.0, "drain_seconds": 5.0, **changes})


@asynccontextmanager
async def serving(store: Store, **settings: Any) -> AsyncIterator[Proxy]:
    """Serve a store in this loop. Among the settings, `resolve` is the resolver to use, and `tracer_provider` traces."""
    resolve: Resolver = settings.pop("resolve", system_resolver)
    tracer_provider = settings.pop("tracer_provider", None)
    app = create_app(store=store, settings=local_settings(**settings), resolve=resolve, tracer_provider=tracer_provider)
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = make_server(app)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(30):
            while not server.started:
                if task.done():
                    task.result()
                await asyncio.sleep(0.005)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, verify=CERTIFICATES, timeout=60, limits=limits) as client:
            yield Proxy(url, app, client)
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def store_of(kind: str) -> AsyncIterator[Store]:
    """A store that keeps nothing: `memory`, or `remote`, over another proxy that has one in memory."""
    if kind == "remote":
        async with serving(MemoryStore()) as other:
            yield RemoteStore(f"{other.url}/v1/stream/ours")
    else:
        yield MemoryStore()


@contextmanager
def vendor_in_a_thread(defaults: Plan | None = None) -> Iterator[str]:
    """The fake vendor, in a thread of its own: its URL. `defaults` hold for whatever a request does not ask for."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_vendor_app(defaults), log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


class ServedProcess(Shorthands):
    """`streamkeep serve` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, client: httpx.AsyncClient) -> None:
        self.process = process
        self.url = url
        self.client = client

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self) -> int:
        async with asyncio.timeout(60):
            return await self.process.wait()


@asynccontextmanager
async def served_process(
    *,
    database_url: str | None = None,
    data_dir: Path | None = None,
    port: int = 0,
    environ: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> AsyncIterator[ServedProcess]:
    """Start `streamkeep serve`, on a database or with the embedded one; stopped, or killed, at the end."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("STREAMKEEP_")}
    env.pop("DATABASE_URL", None)
    env |= {"STREAMKEEP_ALLOW": "http://127.0.0.1:*/**", "STREAMKEEP_LONG_POLL_SECONDS": "2", **(environ or {})}
    if database_url is not None:
        env["DATABASE_URL"] = database_url
    if data_dir is not None:
        env["STREAMKEEP_DATA_DIR"] = str(data_dir)
    with open(log or os.devnull, "wb") as written:  # noqa: ASYNC230
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "streamkeep.proxy", "serve", "--port", str(port)),
            env=env,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if log is None else written,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            first = (await process.stdout.readline()).decode()
        found = re.search(r"http://[0-9.]+:[0-9]+", first)
        assert found is not None, f"not ready: {first!r}"
        async with httpx.AsyncClient(base_url=found[0], verify=CERTIFICATES, timeout=60) as client:
            yield ServedProcess(process, found[0], client)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(20):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
