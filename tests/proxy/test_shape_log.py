"""The shape log: rows of a generation's two streams, for clients that read tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streamkeep.proxy.rules.shape_log import Shape, Table
from streamkeep.storage.rules.generations import Code, Terminal
from tests.serving import Proxy
from tests.upstream import upstream, whole

TEXT = "aé☃😀\r\n\x00 end".encode()
DATA = Shape(Table.DATA, "chat", "1")
CONTROL = Shape(Table.CONTROL, "chat", "1")


def values(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row["value"] for row in rows]


def texts(rows: list[dict[str, Any]]) -> str:
    return "".join(value["data"] for value in values(rows))


@pytest.mark.parametrize("cut", range(len(TEXT) + 1))
def test_rows_are_whole_characters_wherever_the_log_is_cut(cut: int) -> None:
    first, middle = DATA.rows(0, TEXT[:cut], is_closed=False)
    rest, end = DATA.rows(middle, TEXT[middle:], is_closed=True)
    assert texts(first) + texts(rest) == TEXT.decode()
    assert (end, 0 <= cut - middle < 4) == (len(TEXT), True)
    ids = [value["id"] for value in values(first) + values(rest)]
    assert ids == [str(middle)] * len(first) + [str(end)] * len(rest)


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    assert DATA.rows(5, b"a\xe2\x98", is_closed=False)[1] == 6
    rows, end = DATA.rows(5, b"a\xe2\x98", is_closed=True)
    assert (texts(rows), end) == ("a\ufffd", 8)


@pytest.mark.parametrize(
    ("code", "event", "payload"),
    [
        (Code.COMPLETE, "done", {"finishReason": "complete"}),
        (Code.TRUNCATED, "error", {"message": "why"}),
        (Code.CANCELLED, "error", {"message": "why"}),
    ],
)
def test_every_end_but_done_is_an_error(code: Code, event: str, payload: dict[str, str]) -> None:
    terminal = Terminal(code, f"{0:016d}_{42:016d}", 42, None, 1, detail="why").to_json() + b"\x1e"
    [row], end = CONTROL.rows(0, terminal, is_closed=True)
    value: Any = row["value"]
    assert (value["event"], value["data_row_id"], json.loads(value["payload"])) == (event, f"{42:020d}", payload)
    assert (value["id"], end) == (str(len(terminal)), len(terminal))


async def test_a_page_has_all_headers_and_ends_with_its_position(proxy: Proxy) -> None:
    await record(proxy)
    answer = await proxy.read("chat", "1", log="full", offset="-1")
    row, last = answer.json()
    assert row["value"] == {
        "id": str(len(TEXT)),
        "session": "chat",
        "request": "1",
        "data": TEXT.decode(),
        "created_at": None,
    }
    assert last == {"headers": {"control": "up-to-date", "global_last_seen_lsn": str(len(TEXT))}}
    assert answer.headers["electric-offset"] == f"{len(TEXT)}_0"
    assert answer.headers["electric-up-to-date"]
    assert json.loads(answer.headers["electric-schema"])["id"]["type"] == "int8"
    handle = answer.headers["electric-handle"]
    rest = await proxy.read("chat", "1", log="full", offset="3_0", handle=handle)
    assert rest.json()[0]["value"]["data"] == TEXT[3:].decode()
    assert "electric-handle" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("live", [{}, {"live": "true"}, {"live": "true", "live_sse": "true"}])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"offset": "999_0"}, "invalid_offset"),
        ({"offset": "3_1"}, "invalid_offset"),
        ({"offset": "now"}, "invalid_offset"),
        ({"offset": f"{0:016d}_{0:016d}"}, "invalid_offset"),
        ({"offset": "٣_0"}, "invalid_offset"),
        ({"offset": ""}, "invalid_offset"),
        ({"as": "json"}, "invalid_parameter"),
        ({"subset__limit": "1"}, "invalid_parameter"),
    ],
)
async def test_bad_parameters_are_refused(
    proxy: Proxy, live: dict[str, str], changes: dict[str, str], code: str
) -> None:
    await record(proxy)
    answer = await proxy.read("chat", "1", log="full", **live, **changes)
    assert (answer.status_code, answer.json()["error"]) == (400, code)


async def test_another_handle_means_to_begin_anew(proxy: Proxy) -> None:
    await record(proxy)
    answer = await proxy.read("chat", "1", offset="7_3", handle="other", live="true", live_sse="true")
    assert (answer.status_code, answer.json()) == (409, [{"headers": {"control": "must-refetch"}}])
    known = answer.headers["electric-handle"]
    assert (await proxy.read("chat", "1", offset="-1", handle=known)).status_code == 200


async def test_the_two_streams_have_their_own_handles_and_tables(proxy: Proxy) -> None:
    await record(proxy)
    pages = [await proxy.read("chat", "1", which, log="full") for which in ("data", "control")]
    assert len({page.headers["electric-handle"] for page in pages}) == 2
    assert [page.json()[0]["value"].keys() - {"id", "session", "request", "created_at"} for page in pages] == [
        {"data"},
        {"event", "data_row_id", "payload"},
    ]


async def test_who_waits_at_the_end_is_held(proxy: Proxy) -> None:
    await record(proxy)
    answer = await proxy.read("chat", "1", log="full", offset=f"{len(TEXT)}_0", live="true", cursor="17")
    assert answer.elapsed.total_seconds() > proxy.service.settings.long_poll_seconds / 2
    assert [message["headers"]["control"] for message in answer.json()] == ["up-to-date"]
    assert int(answer.headers["electric-cursor"]) > 17


async def record(proxy: Proxy) -> None:
    async with upstream(whole(TEXT, "text/plain", chunk_bytes=2)) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
