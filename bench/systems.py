"""The systems that are measured side by side, each started for one run and stopped after it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import Cores, Server, pinned, server
from bench.routes import DurableRoute, PlainRoute, Route
from streamkeep.storage.embedded import EmbeddedPostgres

PROXY = "proxy"
POSTGRES = "postgres"


@dataclass(frozen=True, slots=True)
class System:
    """A way to upstream. `parties` are the processes that it consists of, by name; nothing for a direct call."""

    route: Route
    parties: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Site:
    """Where systems run: the upstream that they lead to, their cores, and a folder for logs and data."""

    upstream: Server
    cores: Cores | None
    folder: Path

    @property
    def server_core(self) -> int | None:
        return None if self.cores is None else self.cores.servers


@asynccontextmanager
async def _direct(site: Site) -> AsyncIterator[System]:
    yield System(PlainRoute(site.upstream.url))


def _pass_through(transport: str) -> Callable[[Site], AbstractAsyncContextManager[System]]:
    @asynccontextmanager
    async def start(site: Site) -> AsyncIterator[System]:
        command = (sys.executable, "-m", "bench.passthrough")
        arguments = ("--origin", site.upstream.url, "--transport", transport)
        log = site.folder / f"pass-through-{transport}.log"
        async with server(*command, *arguments, log=log, core=site.server_core) as passing:
            yield System(PlainRoute(passing.url), {PROXY: passing.pid})

    return start


@asynccontextmanager
async def _streamkeep(site: Site) -> AsyncIterator[System]:
    """The proxy as users run it, on a fresh database. Postgres is ours to start, so that its processes are counted
    apart; the thread that supervises it keeps to the core on which it was started."""
    with tempfile.TemporaryDirectory(prefix="postgres-", dir=site.folder) as data_dir:
        with pinned(site.server_core):
            postgres = EmbeddedPostgres.start(Path(data_dir))
        with postgres:
            postmaster = postgres.postmaster_pid
            assert postmaster is not None
            environ = {
                **{name: "" for name in os.environ if name.startswith("STREAMKEEP_")},
                "DATABASE_URL": postgres.dsn,
                "STREAMKEEP_ALLOW": f"{site.upstream.url}/**",
            }
            command = (sys.executable, "-m", "streamkeep.proxy", "serve", "--port", "0")
            log = site.folder / "streamkeep.log"
            async with server(*command, log=log, core=site.server_core, environ=environ) as proxy:
                route = DurableRoute(proxy.url, site.upstream.url)
                yield System(route, {PROXY: proxy.pid, POSTGRES: postmaster})


SYSTEMS: dict[str, Callable[[Site], AbstractAsyncContextManager[System]]] = {
    "direct": _direct,
    "pass-through": _pass_through("httpx"),
    "pass-through-fast": _pass_through("streamkeep"),
    "streamkeep": _streamkeep,
}
"""By the name that the command line knows; the order is that of a run."""
