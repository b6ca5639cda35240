"""What kills a stream, times when: `python -m tests.end_to_end.kill_matrix` runs every cell and prints the table.

Each cell has instances of its own on a Postgres of its own. Callers ask every instance, readers reconnect to any of them,
and one fault strikes. Afterwards, for each cell, four numbers that must be zero:

    lost     bytes that some reader was given and that are not there any more, or are others
    hanging  callers and readers that did not come to an end in time
    events   generations with other than one terminal event
    calls    upstream calls beyond the first for the same request

Faults of one instance strike the first: its process, or its wires to the database and to its readers.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import anyio
import httpx

from tests.cutting import Wire, wire_to
from tests.database import PrivateServer
from tests.serving import CERTIFICATES, ServedProcess, served_process
from tests.upstream import Exchange, upstream

MOMENTS = ("before the first byte", "in the middle", "in the last commit")
PIECES = 24
PIECE_BYTES = 200
PIECE_SECONDS = 0.1
CELL_SECONDS = 120.0
SESSION = "matrix"


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a cell is, and how long an outage lasts."""

    instances: int = 3
    generations: int = 50
    outage_seconds: float = 20.0


@dataclass(slots=True)
class Toll:
    """What a fault did that it must not do."""

    lost: int = 0
    hanging: int = 0
    events: int = 0
    calls: int = 0

    @property
    def is_clean(self) -> bool:
        return not any(getattr(self, one.name) for one in fields(self))


@dataclass(slots=True)
class Instance:
    """One proxy: its process, its wire to the database, and the wire by which it is reached."""

    process: ServedProcess
    back: Wire
    front: Wire

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.front.port}"


@dataclass
class World:
    """Everything in one cell."""

    scale: Scale
    database: PrivateServer
    instances: list[Instance]
    vendor_url: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    heads: asyncio.Event = field(default_factory=asyncio.Event)
    ends: asyncio.Event = field(default_factory=asyncio.Event)
    held_at_the_end: int = 0
    seen: dict[str, bytes] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)

    @property
    def names(self) -> list[str]:
        return [str(n) for n in range(self.scale.generations)]

    async def play(self, exchange: Exchange) -> None:
        """The vendor: waits before its head, and before its last piece."""
        name = exchange.path.rpartition("/")[2]
        self.calls[name] += 1
        body = body_of(name)
        await self.heads.wait()
        await exchange.head(200, {"Content-Type": "application/octet-stream"})
        for start in range(0, len(body), PIECE_BYTES):
            if start + PIECE_BYTES >= len(body):
                self.held_at_the_end += 1
                await self.ends.wait()
            await exchange.chunk(body[start : start + PIECE_BYTES])
            await asyncio.sleep(PIECE_SECONDS)
        await exchange.end()


Fault = Callable[[World], Awaitable[None]]


async def kill_a_proxy(world: World) -> None:
    world.instances[0].process.kill()


async def stop_a_proxy(world: World) -> None:
    world.instances[0].process.terminate()


async def kill_postgres(world: World) -> None:
    await anyio.to_thread.run_sync(world.database.kill)


async def stop_postgres(world: World) -> None:
    await anyio.to_thread.run_sync(world.database.stop)
    await asyncio.sleep(world.scale.outage_seconds)
    await anyio.to_thread.run_sync(world.database.start)


async def reset_the_network(world: World) -> None:
    """The database has answered, and its answer never comes; readers are cut off with it."""
    world.instances[0].back.cut_after_answer()
    await asyncio.sleep(0.2)
    world.instances[0].back.cut()
    world.instances[0].front.cut()


async def swallow_the_network(world: World) -> None:
    wires = (world.instances[0].back, world.instances[0].front)
    for wire in wires:
        wire.hold()
    await asyncio.sleep(world.scale.outage_seconds)
    for wire in wires:
        wire.release()


FAULTS: Mapping[str, Fault] = {
    "proxy SIGKILL": kill_a_proxy,
    "proxy SIGTERM": stop_a_proxy,
    "Postgres SIGKILL": kill_postgres,
    "Postgres stopped": stop_postgres,
    "network RST": reset_the_network,
    "network black hole": swallow_the_network,
}


def body_of(name: str) -> bytes:
    return random.Random(name).randbytes(PIECES * PIECE_BYTES)


async def run_cell(fault: str, moment: str, scale: Scale, home: Path) -> tuple[Toll, Counter[str]]:
    """Strike once; what it cost, and how the generations ended."""
    async with a_world(scale, home) as world:
        callers = [asyncio.create_task(call(world, name)) for name in world.names]
        readers = [asyncio.create_task(read(world, name)) for name in world.names]
        striking = asyncio.create_task(strike(world, FAULTS[fault], moment))
        _, late = await asyncio.wait([striking, *callers, *readers], timeout=CELL_SECONDS)
        for task in late:
            task.cancel()
        for task in (striking, *callers, *readers):
            if task not in late:
                task.result()
        toll = Toll(hanging=len(late))
        await asyncio.gather(*(examine(world, name, toll) for name in world.names))
        toll.calls = sum(count - 1 for count in world.calls.values() if count > 1)
        return toll, world.endings


async def strike(world: World, fault: Fault, moment: str) -> None:
    """The fault, at its moment; then the vendor goes on."""
    generations = world.scale.generations
    if moment == MOMENTS[0]:
        await until(lambda: len(world.calls) == generations)
        await fault(world)
        world.heads.set()
        world.ends.set()
        return
    world.heads.set()
    if moment == MOMENTS[1]:
        await until(lambda: sum(len(seen) for seen in world.seen.values()) > generations * PIECES * PIECE_BYTES / 3)
        world.ends.set()
        await fault(world)
        return
    await until(lambda: world.held_at_the_end == generations)
    striking = asyncio.ensure_future(fault(world))
    world.ends.set()
    await striking


async def call(world: World, name: str) -> None:
    """Ask until somebody answers for good, each time another instance; always in the same name."""
    turn = int(name)
    while True:
        url = world.instances[turn % len(world.instances)].url
        turn += 1
        async with httpx.AsyncClient(
            base_url=url, verify=CERTIFICATES, timeout=httpx.Timeout(30.0, connect=2.0)
        ) as client:
            try:
                answer = await client.post(
                    f"/api/{SESSION}/{name}", content=b"{}", headers={"X-Proxy-Url": f"{world.vendor_url}/{name}"}
                )
            except httpx.TransportError:
                await asyncio.sleep(0.2)
                continue
        if answer.status_code == 200 or "streamUrl" in answer.text:
            return
        assert answer.status_code in (502, 503, 504), answer.text
        await asyncio.sleep(0.2)


async def read(world: World, name: str) -> None:
    """Follow one stream to its end over whichever instance answers."""
    chance = random.Random(f"reader {name}")
    offset, seen = "-1", b""
    while True:
        url = chance.choice(world.instances).url
        query = {"sessionId": SESSION, "requestId": name, "offset": offset, "live": "long-poll"}
        async with httpx.AsyncClient(
            base_url=url, verify=CERTIFICATES, timeout=httpx.Timeout(10.0, connect=2.0)
        ) as client:
            try:
                answer = await client.get("/stream/data", params=query)
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
        if answer.status_code not in (200, 204):
            assert answer.status_code in (404, 503), answer.text
            await asyncio.sleep(0.2)
            continue
        seen += answer.content
        world.seen[name] = seen
        offset = answer.headers["Stream-Next-Offset"]
        if answer.headers.get("Stream-Closed") == "true":
            return


async def examine(world: World, name: str, toll: Toll) -> None:
    """What is there now, beside what the reader was given and what the vendor sent."""
    query = {"sessionId": SESSION, "requestId": name, "offset": "-1"}
    async with httpx.AsyncClient(base_url=world.instances[-1].url, verify=CERTIFICATES, timeout=30) as client:
        data = await client.get("/stream/data", params=query)
        control = await client.get("/stream/control", params=query)
    seen = world.seen.get(name, b"")
    if not data.content.startswith(seen) or not body_of(name).startswith(data.content):
        toll.lost += max(1, len(seen) - len(data.content))
    events = control.json() if control.status_code == 200 else []
    toll.events += len(events) != 1
    for event in events:
        world.endings[event["code"]] += 1
        if event["code"] == "complete" and data.content != body_of(name):
            toll.lost += len(body_of(name)) - len(data.content)


@asynccontextmanager
async def a_world(scale: Scale, home: Path) -> AsyncIterator[World]:
    database = await anyio.to_thread.run_sync(lambda: PrivateServer(home))
    try:
        async with AsyncExitStack() as stack:
            instances = []
            for _ in range(scale.instances):
                back = await stack.enter_async_context(wire_to(database.url))
                environ = {"STREAMKEEP_DRAIN_SECONDS": "60", "STREAMKEEP_LOG_LEVEL": "error"}
                process = await stack.enter_async_context(served_process(database_url=back.url, environ=environ))
                front = await stack.enter_async_context(wire_to(process.url))
                instances.append(Instance(process, back, front))
            world = World(scale, database, instances)
            vendor = await stack.enter_async_context(upstream(world.play))
            world.vendor_url = vendor.url
            yield world
    finally:
        await anyio.to_thread.run_sync(database.stop)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def run(pattern: str, scale: Scale) -> bool:
    """Run the cells whose name matches; print the table as it grows. Returns whether all were clean."""
    columns = [one.name for one in fields(Toll)]
    print(f"{scale.instances} instances, {scale.generations} generations, outages of {scale.outage_seconds:g} s")
    print(f"| fault | moment | {' | '.join(columns)} | ended |\n|---|---|{'---|' * len(columns)}---|")
    is_clean = True
    for fault in FAULTS:
        for moment in MOMENTS:
            if not re.search(pattern, f"{fault} {moment}"):
                continue
            with tempfile.TemporaryDirectory() as home:
                toll, endings = await run_cell(fault, moment, scale, Path(home))
            is_clean = is_clean and toll.is_clean
            numbers = " | ".join(str(getattr(toll, column)) for column in columns)
            ended = ", ".join(f"{count} {code}" for code, count in endings.most_common())
            print(f"| {fault} | {moment} | {numbers} | {ended} |", flush=True)
    return is_clean


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.end_to_end.kill_matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default="", metavar="REGEX", help="only cells whose fault and moment match")
    usual = Scale()
    parser.add_argument("--generations", type=int, default=usual.generations)
    parser.add_argument("--instances", type=int, default=usual.instances)
    parser.add_argument("--outage", type=float, default=usual.outage_seconds, metavar="SECONDS")
    chosen = parser.parse_args()
    scale = Scale(chosen.instances, chosen.generations, chosen.outage)
    return 0 if asyncio.run(run(chosen.cells, scale)) else 1


if __name__ == "__main__":
    sys.exit(main())
