"""The systems that are measured side by side, each started for one run and stopped after it.

There are two kinds: ways to an upstream, which relay generations, and servers of the open protocol, which keep streams
that are appended to.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from bench.http_client import Connection, RequestFailed
from bench.listeners import Listener
from bench.processes import Cores, Server, StartFailed, pinned, server
from bench.routes import DurableRoute, PlainRoute, Route
from streamkeep.storage.embedded import EmbeddedPostgres
from tests import node, python_packages

OURS = "streamkeep"
"""Our own name among the systems."""

PROXY = "proxy"
POSTGRES = "postgres"

_IN_MEMORY = "memory: gone with the process"
_RAKAIA = "rakaia-streams==0.9.0"
_AIOHTTP = (
    "aiohttp==3.14.5",
    *("aiohappyeyeballs", "aiosignal", "attrs", "frozenlist", "multidict", "propcache", "yarl"),
)
_PRELOAD = "LD_PRELOAD"
_LONGEST_SECONDS = 120.0

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
    """A server of the open protocol. `durability` says what an answered append has survived; streams stand below
    `root`, and `headers` go with each request."""

    url: str
    parties: dict[str, int]
    durability: str
    root: str = "/v1/stream"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def foreign(cls, url: str, headers: Mapping[str, str]) -> StreamServer:
        """Anybody's, which runs already. Streams stand below the URL's path, where it has one, under names that nobody else uses."""
        root = urlsplit(url).path.rstrip("/") or "/v1/stream"
        name = f"bench-{secrets.token_hex(4)}"
        return cls(url, {}, "not known", f"{root}/{name}", headers)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    async def remove(self, connection: Connection, path: str) -> None:
        """Leave nothing on somebody's server, where it can delete. Raises: RequestFailed: the connection ended."""
        if not self.parties:
            await connection.request("DELETE", path, wanted=(200, 204, 404, 405))

    async def connect(self) -> Connection:
        """Raises: OSError."""
        return await Connection.open(self.url, self.headers)

    async def listen(self, target: str) -> Listener:
        """Raises: OSError."""
        return await Listener.open(self.url, target, self.headers)


@dataclass(frozen=True, slots=True)
class Place:
    """Where systems run: their cores, and a folder for logs and data. With a `foreign` server, it is measured in our place."""

    cores: Cores | None
    folder: Path
    foreign: StreamServer | None = None

    @property
    def subject(self) -> str:
        """Who is measured."""
        return OURS if self.foreign is None else urlsplit(self.foreign.url).netloc

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
async def _sketch(site: Site) -> AsyncIterator[System]:
    """Raises: StartFailed."""
    environ = _with_packages("aiohttp", _AIOHTTP)
    with _postgres(site.place) as postgres:
        environ["DATABASE_URL"] = postgres.dsn
        command = (sys.executable, "-m", "bench.sketch")
        log = site.place.folder / "sketch.log"
        async with server(*command, log=log, cores=site.place.server_cores, environ=environ) as sketch:
            parties = {PROXY: sketch.pid, POSTGRES: _postmaster(postgres)}
            yield System(DurableRoute(sketch.url, site.upstream.url), parties)


@asynccontextmanager
async def streamkeep(site: Site, *, workers: int = 1, preload: Path | None = None) -> AsyncIterator[System]:
    """The proxy, with so many worker processes. Postgres loads the library `preload` before all others.

    Raises:
        StartFailed: it did not come up, or Postgres could not load the library.
    """
    options = _Options(allow=f"{site.upstream.url}/**", workers=workers, preload=preload)
    async with _proxy(site.place, options) as (proxy, postmaster, database_url):
        parties = {PROXY: proxy.pid, POSTGRES: postmaster}
        yield System(DurableRoute(proxy.url, site.upstream.url), parties, database_url)


@asynccontextmanager
async def _streamkeep_streams(place: Place) -> AsyncIterator[StreamServer]:
    async with _proxy(place, _Options()) as (proxy, postmaster, _):
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
        yield StreamServer(reference.url, {PROXY: reference.pid}, _IN_MEMORY)


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
async def _rakaia(place: Place) -> AsyncIterator[StreamServer]:
    """A server in Python, in memory. Raises: StartFailed."""
    environ = _with_packages("rakaia", (_RAKAIA,))
    command = (sys.executable, "-m", "bench.python_server", "rakaia:app")
    log = place.folder / "rakaia.log"
    async with server(*command, log=log, cores=place.server_cores, environ=environ) as rakaia:
        yield StreamServer(rakaia.url, {PROXY: rakaia.pid}, _IN_MEMORY)


def _with_packages(name: str, packages: tuple[str, ...]) -> dict[str, str]:
    """The environment of a process that finds packages which only a peer needs. Raises: StartFailed."""
    try:
        home = python_packages.folder(name, packages)
    except (OSError, subprocess.SubprocessError) as exc:
        raise StartFailed(f"{packages[0]} could not be installed: {exc}") from exc
    return {"PYTHONPATH": os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])}


@dataclass(frozen=True, slots=True)
class _Options:
    allow: str = ""
    workers: int = 1
    preload: Path | None = None


@asynccontextmanager
async def _proxy(place: Place, options: _Options) -> AsyncIterator[tuple[Server, int, str]]:
    """The proxy as users run it, on a fresh database; with the process id of its Postgres and its URL."""
    with _postgres(place, options.preload) as postgres:
        postmaster = _postmaster(postgres)
        if options.preload is not None and not _has_loaded(postmaster, options.preload):
            raise StartFailed(f"Postgres did not load {options.preload.name}")
        environ = {
            **{name: "" for name in os.environ if name.startswith("STREAMKEEP_")},
            "DATABASE_URL": postgres.dsn,
            "STREAMKEEP_ALLOW": options.allow,
        }
        command = (sys.executable, "-m", "streamkeep.proxy", "serve", "--port", "0")
        count = ("--workers", str(options.workers)) if options.workers > 1 else ()
        log = place.folder / "streamkeep.log"
        async with server(*command, *count, log=log, cores=place.server_cores, environ=environ) as proxy:
            yield proxy, postmaster, postgres.dsn


@contextmanager
def _postgres(place: Place, preload: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """A fresh database, with default durability. It is ours to start, so that its processes are counted apart; the thread that
    supervises it keeps to the cores on which it was started."""
    with tempfile.TemporaryDirectory(prefix="postgres-", dir=place.folder) as data_dir:
        with pinned(place.server_cores), _preloaded(preload):
            postgres = EmbeddedPostgres.start(Path(data_dir))
        with postgres:
            yield postgres


def _postmaster(postgres: EmbeddedPostgres) -> int:
    postmaster = postgres.postmaster_pid
    assert postmaster is not None
    return postmaster


@contextmanager
def _preloaded(library: Path | None) -> Iterator[None]:
    """Programs that are started inside load this library before all others."""
    if library is None:
        yield
        return
    before = os.environ.get(_PRELOAD)
    os.environ[_PRELOAD] = str(library)
    try:
        yield
    finally:
        del os.environ[_PRELOAD]
        if before is not None:
            os.environ[_PRELOAD] = before


def _has_loaded(pid: int, library: Path) -> bool:
    return library.name in Path(f"/proc/{pid}/maps").read_text()


SYSTEMS: dict[str, Callable[[Site], AbstractAsyncContextManager[System]]] = {
    "direct": _direct,
    "pass-through": _pass_through("httpx"),
    "pass-through-fast": _pass_through("streamkeep"),
    "sketch": _sketch,
    OURS: streamkeep,
}
"""The ways to an upstream, by the name that the command line knows; the order is that of a run."""

STREAM_SERVERS: dict[str, Callable[[Place], AbstractAsyncContextManager[StreamServer]]] = {
    OURS: _streamkeep_streams,
    "reference": _reference,
    "reference-memory": _reference_in_memory,
    "rakaia": _rakaia,
}
"""The servers of the open protocol, likewise."""


async def measure_each(
    names: Iterable[str], place: Place, measure: Callable[[StreamServer], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """Measure some of the servers one after the other, each started afresh; what was found by name, and who was left out
    and why. Who is not ours may be missing.

    With a foreign server, that alone is measured, under our name.

    Raises:
        Exception: ours could not be measured.
    """
    if place.foreign is not None:
        return {OURS: await measure(place.foreign)}, {}
    found: dict[str, T] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            async with asyncio.timeout(_LONGEST_SECONDS), STREAM_SERVERS[name](place) as stream_server:
                found[name] = await measure(stream_server)
        except (StartFailed, RequestFailed, OSError, ValueError) as exc:
            if name == OURS:
                raise
            left_out[name] = str(exc) or f"it did not end within {_LONGEST_SECONDS:.0f} s"
    return found, left_out
