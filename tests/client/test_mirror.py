"""An SQLite table that is equal to a state stream, whatever happens to who keeps it so."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from streamkeep.client import AsyncDurableStream, DurableStream, InvalidOffset, LocalStoreFailed
from streamkeep.client.state import amirror, control, delete, insert, mirror, update
from tests.client.streaming import call, created
from tests.serving import Proxy


def rows(path: Path, table: str = "state") -> dict[tuple[str, str], Any]:
    with closing(sqlite3.connect(path)) as database:
        found = database.execute(f"SELECT type, key, value FROM {table}").fetchall()
    return {(type, key): json.loads(value) for type, key, value in found}


async def stream(proxy: Proxy, session: str, *events: object) -> DurableStream:
    handle = await created("sync", f"{proxy.url}/v1/stream/{session}", content_type="application/json")
    assert isinstance(handle, DurableStream)
    for event in events:  # As text, which may escape half a character.
        await call(handle.append, json.dumps(event))
    return handle


async def test_a_mirror_goes_on_where_it_was(proxy: Proxy, session: str, tmp_path: Path) -> None:
    path = tmp_path / "mirror.sqlite3"
    bad: list[object] = [1, {"headers": {}}, insert("a", "1", 0) | {"key": "\ud800"}]
    handle = await stream(proxy, session, insert("a", "1", {"x": "\ud800"}), insert("a", "2", None), *bad)
    with handle:
        offset = await call(mirror, handle, path)
        assert rows(path) == {("a", "1"): {"x": "\ud800"}, ("a", "2"): None}
        assert await call(mirror, handle, path) == offset == (await call(handle.head)).offset
        for event in (update("a", "1", [1]), delete("a", "2"), insert("b", "1", "y")):
            await call(handle.append, event)
        assert await call(mirror, handle, path) > offset
        assert rows(path) == {("a", "1"): [1], ("b", "1"): "y"}
        await call(handle.append, control("reset"))
        await call(handle.close, insert("c", "1", True))
        await call(mirror, handle, path, live=True)
        assert rows(path) == {("c", "1"): True}
        await call(mirror, handle, path, table="another")
        assert rows(path, "another") == {("c", "1"): True}


async def test_a_mirror_is_kept_by_asyncio_as_well(proxy: Proxy, session: str, tmp_path: Path) -> None:
    path, url = tmp_path / "mirror.sqlite3", f"{proxy.url}/v1/stream/{session}"
    with await stream(proxy, session, insert("a", "1", 1)) as handle:
        async with AsyncDurableStream(url) as other:
            following = asyncio.create_task(amirror(other, path, live=True))
            async with asyncio.timeout(20):
                while not path.exists() or rows_so_far(path) != {("a", "1"): 1}:
                    await asyncio.sleep(0.01)
            following.cancel()
            await asyncio.wait([following])
            await call(handle.close, update("a", "1", 2))
            assert await amirror(other, path, live=True) == (await other.head()).offset
            assert rows(path) == {("a", "1"): 2}
            assert await call(mirror, handle, path) == (await other.head()).offset
            with pytest.raises(LocalStoreFailed):
                await amirror(other, tmp_path)
            with pytest.raises(ValueError, match="table's name"):
                await amirror(other, path, table="a b")


def rows_so_far(path: Path) -> dict[tuple[str, str], Any]:
    try:
        return rows(path)
    except sqlite3.OperationalError:  # It is being made.
        return {}


async def test_a_mirror_of_something_else_is_left_alone(proxy: Proxy, session: str, tmp_path: Path) -> None:
    path = tmp_path / "mirror.sqlite3"
    with await stream(proxy, session, insert("a", "1", 1)) as handle:
        await call(mirror, handle, path)
        with pytest.raises(ValueError, match="table's name"):
            await call(mirror, handle, path, table="a; DROP TABLE state")
        with pytest.raises(LocalStoreFailed):
            await call(mirror, handle, tmp_path)
    with await stream(proxy, f"{session}-shorter") as shorter, pytest.raises(InvalidOffset):
        await call(mirror, shorter, path)
    assert rows(path) == {("a", "1"): 1}
