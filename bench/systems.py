"""The systems that are measured side by side, each started for one run and stopped after it.

There are two kinds: ways to an upstream, which relay generations, and servers of the open protocol, which keep streams
that are appended to.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench.processes import Cores, Server, StartFailed, pinned, server
from bench.routes import DurableRoute, PlainRoute, Route
from streamkeep.storage.embedded import EmbeddedPostgres
from tests import node

OURS = "streamkeep"
"""Our own name among the systems."""

PROXY = "proxy"
POSTGRES = "postgres"

T = TypeVar("T")

_REFERENCE = Path(__file__).parent / "reference"


@dataclass(frozen=True, slots=True)
class System:
    """A way to upstream. `parties` are the processes that it consists of, by name; nothing for a direct call.
    `database_url` leads to the database, where there is one."""

    route: Route
    parties: dict[str, int] = field(default_factory=dict)
    database_url: str | None = None


@dataclass(frozen=True, slots=True)
class StreamServer:
    """A server of the open protocol. `durability` says what an answered append has survived."""

    url: str
    parties: dict[str, int]
    durability: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where systems run: their cores, and a folder for logs and data."""

    cores: Cores | None
    folder: Path

    @property
    def server_cores(self) -> frozenset[int] | None:
        return None if self.cores is None else self.cores.servers

    @property
    def load_cores(self) -> frozenset[int] | None:
        return None if self.cores is None else self.cores.load


@dataclass(frozen=True, slots=True)
class Site:
    """A place, and the upstream that its systems lead to."""

    place: Place
    upstream: Server


_FAKE_UPSTREAM = ("-m", "bench.upstream")

VENDOR = ("-m", "streamkeep.proxy", "vendor", "--port", "0", "--rate", "0")
"""The demo vendor: real formats, answers at once."""


@asynccontextmanager
async def site_at(place: Place, upstream: Sequence[str] = _FAKE_UPSTREAM) -> AsyncIterator[Site]:
    """A site with an upstream of its own: Python with these arguments."""
    log = place.folder / "upstream.log"
    async with server(sys.executable, *upstream, log=log, cores=place.load_cores) as running:
        yield Site(place, running)


@asynccontextmanager
async def _direct(site: Site) -> AsyncIterator[System]:
    yield System(PlainRoute(site.upstream.url))


def _pass_through(transport: str) -> Callable[[Site], AbstractAsyncContextManager[System]]:
    @asynccontextmanager
    async def start(site: Site) -> AsyncIterator[System]:
        command = (sys.executable, "-m", "bench.passthrough")
        arguments = ("--origin", site.upstream.url, "--transport", transport)
        log = site.place.folder / f"pass-through-{transport}.log"
        async with server(*command, *arguments, log=log, cores=site.place.server_cores) as passing:
            yield System(PlainRoute(passing.url), {PROXY: passing.pid})

    return start


@asynccontextmanager
async def _streamkeep(site: Site) -> AsyncIterator[System]:
    async with _proxy(site.place, allow=f"{site.upstream.url}/**") as (proxy, postmaster, database_url):
        parties = {PROXY: proxy.pid, POSTGRES: postmaster}
        yield System(DurableRoute(proxy.url, site.upstream.url), parties, database_url)


@asynccontextmanager
async def _streamkeep_streams(place: Place) -> AsyncIterator[StreamServer]:
    async with _proxy(place, allow="") as (proxy, postmaster, _):
        durability = "Postgres: one transaction, synced to disk"
        yield StreamServer(proxy.url, {PROXY: proxy.pid, POSTGRES: postmaster}, durability)


@asynccontextmanager
async def _reference(place: Place) -> AsyncIterator[StreamServer]:
    """The protocol's reference server with its file store. Raises: StartFailed."""
    with tempfile.TemporaryDirectory(prefix="reference-", dir=place.folder) as data_dir:
        durability = "files: the bytes synced to disk, tail and producers behind them in LMDB"
        async with _reference_server(place, data_dir) as reference:
            yield StreamServer(reference.url, {PROXY: reference.pid}, durability)


@asynccontextmanager
async def _reference_in_memory(place: Place) -> AsyncIterator[StreamServer]:
    """The same with nothing kept. Raises: StartFailed."""
    async with _reference_server(place) as reference:
        yield StreamServer(reference.url, {PROXY: reference.pid}, "memory: gone with the process")


@asynccontextmanager
async def _reference_server(place: Place, *arguments: str) -> AsyncIterator[Server]:
    try:
        home = node.project(_REFERENCE)
    except node.InstallFailed as exc:
        raise StartFailed(str(exc)) from exc
    command = (str(node.NODE), str(home / "server.mjs"), *arguments)
    async with server(*command, log=place.folder / "reference.log", cores=place.server_cores) as reference:
        yield reference


@asynccontextmanager
async def _proxy(place: Place, *, allow: str) -> AsyncIterator[tuple[Server, int, str]]:
    """The proxy as users run it, on a fresh database; with the process id of its Postgres and its URL. Postgres is ours to start, so
    that its processes are counted apart; the thread that supervises it keeps to the core on which it was started."""
    with tempfile.TemporaryDirectory(prefix="postgres-", dir=place.folder) as data_dir:
        with pinned(place.server_cores):
            postgres = EmbeddedPostgres.start(Path(data_dir))
        with postgres:
            postmaster = postgres.postmaster_pid
            assert postmaster is not None
            environ = {
                **{name: "" for name in os.environ if name.startswith("STREAMKEEP_")},
                "DATABASE_URL": postgres.dsn,
                "STREAMKEEP_ALLOW": allow,
            }
            command = (sys.executable, "-m", "streamkeep.proxy", "serve", "--port", "0")
            log = place.folder / "streamkeep.log"
            async with server(*command, log=log, cores=place.server_cores, environ=environ) as proxy:
                yield proxy, postmaster, postgres.dsn


SYSTEMS: dict[str, Callable[[Site], AbstractAsyncContextManager[System]]] = {
    "direct": _direct,
    "pass-through": _pass_through("httpx"),
    "pass-through-fast": _pass_through("streamkeep"),
    "streamkeep": _streamkeep,
}
"""The ways to an upstream, by the name that the command line knows; the order is that of a run."""

STREAM_SERVERS: dict[str, Callable[[Place], AbstractAsyncContextManager[StreamServer]]] = {
    "streamkeep": _streamkeep_streams,
    "reference": _reference,
    "reference-memory": _reference_in_memory,
}
"""The servers of the open protocol, likewise."""


async def measure_each(
    names: Iterable[str], place: Place, measure: Callable[[StreamServer], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """Measure some of the servers one after the other, each started afresh; what was found by name, and who was left out
    and why. Who is not ours may be missing.

    Raises:
        StartFailed: ours did not come up.
    """
    found: dict[str, T] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            async with STREAM_SERVERS[name](place) as stream_server:
                found[name] = await measure(stream_server)
        except StartFailed as exc:
            if name == OURS:
                raise
            left_out[name] = str(exc)
    return found, left_out
