"""A real pgbouncer in transaction mode between two proxies and their database; skipped where none is installed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from streamkeep.storage.postgres import PostgresStore
from tests.cutting import wire_to
from tests.database import PrivateServer
from tests.serving import serving
from tests.upstream import Exchange, upstream

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

_PORT = 6432
_CONFIGURATION = """
[databases]
postgres = host=127.0.0.1 port={server_port} dbname=postgres user=postgres

[pgbouncer]
unix_socket_dir = {home}
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = 3
server_login_retry = 1
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed"),
]


@asynccontextmanager
async def pgbouncer(database_url: str) -> AsyncIterator[str]:
    """The URL of the same database through a pooler, which gives each transaction any of a few sessions."""
    # The database's own socket opens to its owner alone, whom pgbouncer, which refuses to be root, may not be.
    async with wire_to(database_url) as wire:
        with tempfile.TemporaryDirectory(prefix="pgbouncer-") as home, started(Path(home), wire.port):
            yield f"postgresql://postgres@/postgres?host={home}&port={_PORT}"


@contextmanager
def started(home: Path, server_port: int) -> Iterator[None]:
    """A pgbouncer that listens on a socket in its home."""
    assert PGBOUNCER is not None
    configuration = home / "pgbouncer.ini"
    configuration.write_text(_CONFIGURATION.format(server_port=server_port, home=home, port=_PORT))
    command = [PGBOUNCER, "--quiet", str(configuration)]
    if os.geteuid() == 0:
        shutil.chown(home, "nobody")
        command += ["--user", "nobody"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (home / f".s.PGSQL.{_PORT}").exists():
            assert process.poll() is None, "pgbouncer did not start"
            assert time.monotonic() < deadline, "pgbouncer does not listen"
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait()


async def test_t34_behind_a_pooler_an_outage_of_twenty_seconds_costs_no_byte(private_server: PrivateServer) -> None:
    rng = random.Random(34)
    bodies = {str(number): rng.randbytes(60_000) for number in range(12)}

    is_stopped = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        body = bodies[exchange.path.strip("/")]
        await exchange.head(200, {"Content-Type": "application/octet-stream"})
        for start in range(0, len(body), 600):
            if start == len(body) // 2:
                await is_stopped.wait()
            await exchange.chunk(body[start : start + 600])
            await asyncio.sleep(0.02)
        await exchange.end()

    async with pgbouncer(private_server.url) as pooled_url:

        def store() -> PostgresStore:
            return PostgresStore(pooled_url, direct_dsn=private_server.url)

        async with (
            serving(store()) as one,
            serving(store()) as two,
            upstream(play) as server,
        ):
            for number in bodies:
                answer = await one.create("chat", number, f"{server.url}/{number}")
                assert answer.status_code == 200, answer.text
            readings = [
                asyncio.create_task(proxy.read_all_patiently("chat", number))
                for number in bodies
                for proxy in (one, two)
            ]
            for number in bodies:
                await two.available(30_000, "chat", number)
            # The wake-ups come past the pooler, which would lose them.
            assert "streamkeep_database_listening 1.0" in (await two.client.get("/metrics")).text

            resumed = await two.client.post("/api/chat/0", headers={"X-Resume-Active-Generation": "true"})
            assert resumed.json()["requestId"] == "0"
            assert await two.cancel("chat", "0") == "cancelled"
            [cancelled] = [call for call in server.calls if call.path == "/0"]
            await asyncio.wait_for(cancelled.is_gone.wait(), 30)

            await asyncio.to_thread(private_server.stop)
            is_stopped.set()
            until = time.monotonic() + 20
            while time.monotonic() < until:
                assert (await two.client.get("/health")).status_code == 200
                await asyncio.sleep(0.5)
            await asyncio.to_thread(private_server.start)

            found = await asyncio.gather(*readings)
            for number, body in list(bodies.items())[1:]:
                first, second = found[2 * int(number) : 2 * int(number) + 2]
                assert first == second == body
                event = await two.ending("chat", number)
                assert (event["code"], event["sha256"]) == ("complete", hashlib.sha256(body).hexdigest())
            assert bodies["0"].startswith(found[0])
            assert found[0] == found[1]
            assert (await one.ending("chat", "0"))["code"] == "cancelled"
            assert len(server.calls) == len(bodies)
