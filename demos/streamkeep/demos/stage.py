"""A demo in the browser, with all that it needs, in one process: the model, the proxy, the line to it, and the pages.

Nothing is left behind: what is recorded is kept in memory, and every socket dies with the process.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import uvicorn
from platformdirs import user_cache_path
from starlette.types import ASGIApp

from streamkeep.demos import local_model
from streamkeep.demos.app import DemoApp
from streamkeep.demos.catalogue import Demo
from streamkeep.demos.line import Line
from streamkeep.demos.model import Model, ModelChoice, ModelError
from streamkeep.proxy import Settings, create_app
from streamkeep.proxy.rules.allowlist import Allowlist
from streamkeep.proxy.server import bind, make_server
from streamkeep.proxy.vendor import Plan, create_vendor_app
from streamkeep.storage.memory import MemoryStore

_HOST = "127.0.0.1"
_ADDRESS = re.compile(r"http://[0-9.]+:[0-9]+")
_DRAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a demo's servers are. The page reaches the proxy by the line; `model` is its base URL."""

    page: str
    proxy: str
    line: str
    model: str


@asynccontextmanager
async def staged(demo: Demo, choice: ModelChoice, port: int) -> AsyncIterator[Addresses]:
    """Run a demo's servers. Raises: OSError, when the port is taken; ModelError, when there is no model."""
    async with AsyncExitStack() as stack:
        # Bound first: a port that is taken is told before anything starts.
        page_listener = stack.enter_context(bind(_HOST, port))
        page_url = _url(page_listener)
        page_port = page_listener.getsockname()[1]
        model = await stack.enter_async_context(_model(choice))
        proxy_listener = stack.enter_context(bind(_HOST, 0))
        origins = [page_url, f"http://localhost:{page_port}"]
        line = Line()
        line_port = await stack.enter_async_context(line.to(proxy_listener.getsockname()[1]))
        plain_port = await stack.enter_async_context(line.to(page_port))
        urls = {"proxy": f"http://{_HOST}:{line_port}", "plain": f"http://{_HOST}:{plain_port}"}
        urls |= {"direct": _url(proxy_listener), "page": page_url}
        app = DemoApp(demo, model, line, urls).asgi(origins)
        await stack.enter_async_context(_serving(_Server(_config(app)), page_listener))
        await stack.enter_async_context(_proxy(proxy_listener, allow=f"{page_url}/**", origins=origins))
        yield Addresses(page_url, _url(proxy_listener), urls["proxy"], model.url)


@asynccontextmanager
async def _model(choice: ModelChoice) -> AsyncIterator[Model]:
    async with AsyncExitStack() as stack:
        if choice.is_local:
            url = await stack.enter_async_context(_local_model())
            fields = {"max_tokens": choice.tokens, "stop": [local_model.ANSWER_ENDS_AT]}
            model = Model(url, local_model.NAME, choice.key, has_tools=False, fields=fields)
        elif choice.url is not None:
            model = Model(choice.url, choice.name, choice.key)
        else:
            url = await stack.enter_async_context(_fake_vendor(choice))
            model = Model(url, choice.name, choice.key)
        yield await stack.enter_async_context(model)


@asynccontextmanager
async def _local_model() -> AsyncIterator[str]:
    """In a process of its own, which ends with this one: it reads what only this one could write."""
    cache_dir = user_cache_path("streamkeep") / "model"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamkeep.demos.local_model", str(cache_dir), local_model.ANSWERING),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if found := _ADDRESS.search(line.decode(errors="replace")):
                yield f"{found[0]}/v1"
                return
        raise ModelError("the model on this machine did not start")
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def _fake_vendor(choice: ModelChoice) -> AsyncIterator[str]:
    app = create_vendor_app(Plan(tokens=choice.tokens, rate=choice.rate, is_markdown=True))
    with bind(_HOST, 0) as listener:
        async with _serving(_Server(_config(app)), listener):
            yield _url(listener) + "/v1"


@asynccontextmanager
async def _proxy(listener: socket.socket, *, allow: str, origins: list[str]) -> AsyncIterator[None]:
    # A glob that spells a loopback host admits it.
    settings = Settings(allow=Allowlist.parse([allow]), origins=tuple(origins), drain_seconds=_DRAIN_SECONDS)
    server = make_server(create_app(store=MemoryStore(), settings=settings))
    async with _serving(server, listener, stop=server.stop):
        yield


class _Server(uvicorn.Server):
    """A server that leaves signals to the demo."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1)


@asynccontextmanager
async def _serving(
    server: uvicorn.Server, listener: socket.socket, *, stop: Callable[[], None] | None = None
) -> AsyncIterator[None]:
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if task.done():
                task.result()
                raise OSError("a server of the demo did not start")
            await asyncio.sleep(0.005)
        yield
    finally:
        if stop is not None and server.started:
            stop()
        else:
            server.should_exit = True
        await task


def _url(listener: socket.socket) -> str:
    return f"http://{_HOST}:{listener.getsockname()[1]}"
