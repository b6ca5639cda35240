"""Servers that break off, lie and stall: what a reader gets is the right bytes, or an exception of ours, in bounded time."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from streamkeep.client import ConnectionFailed, ProtocolError, ServerError, StreamkeepError
from streamkeep.client._rules import reading
from tests.client.both import Kind
from tests.client.streaming import HASTY, call, created, items, opened
from tests.upstream import Exchange, Script, upstream

WHOLE = "a日🌊\r\nb\rc\n\x00é".encode()


def offset(position: int) -> str:
    return f"o{position:08d}"


def position(exchange: Exchange) -> int:
    found = parse_qs(urlsplit(exchange.path).query)["offset"][0]
    return 0 if found == "-1" else int(found[1:])


def live(exchange: Exchange) -> str | None:
    return parse_qs(urlsplit(exchange.path).query).get("live", [None])[0]


def head(end: int, *, content_type: str = "application/octet-stream", closed: bool = False) -> dict[str, str]:
    flags = {"Stream-Up-To-Date": "true", **({"Stream-Closed": "true"} if closed else {})}
    return {"Content-Type": content_type, "Stream-Next-Offset": offset(end), **flags}


def page(data: bytes, end: int, **flags: Any) -> bytes:
    """A whole HTTP answer."""
    fields = {**head(end, **flags), "Content-Length": str(len(data))}
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + data


def frame(data: bytes, end: int, *, closed: bool = False, line_end: bytes = b"\n") -> bytes:
    """A data event and its control event."""
    control = {"streamNextOffset": offset(end), "upToDate": True, **({"streamClosed": True} if closed else {})}
    text = f"event: data\ndata:{base64.b64encode(data).decode()}\n\nevent: control\ndata: {json.dumps(control)}\n\n"
    return text.encode().replace(b"\n", line_end)


async def begin_events(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/event-stream", "Stream-SSE-Data-Encoding": "base64"})


async def read_all(kind: Kind, script: Script, **options: Any) -> tuple[bytes, list[str | None]]:
    """Everything that a reader gets, and the modes in which it asked."""
    async with asyncio.timeout(60), upstream(script) as server:
        async with opened(kind, f"{server.url}/s", **options) as response:
            data = b"".join(await items(response.iter_bytes()))
        return data, [live(exchange) for exchange in server.calls]


async def test_a_page_may_be_cut_at_every_byte(kind: Kind) -> None:
    answer = page(WHOLE, len(WHOLE), closed=True)
    for cut in range(0, len(answer), 3):
        attempts = 0

        async def play(exchange: Exchange, cut: int = cut) -> None:
            nonlocal attempts
            attempts += 1
            await exchange.send(answer[:cut] if attempts == 1 else answer)
            if attempts == 1 and cut % 2:
                exchange.reset()

        assert (await read_all(kind, play, live=False))[0] == WHOLE, cut


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
async def test_events_may_be_cut_at_every_byte_with_every_line_end(kind: Kind, line_end: bytes) -> None:
    half = len(WHOLE) // 2
    sent = frame(WHOLE[:half], half, line_end=line_end) + frame(
        WHOLE[half:], len(WHOLE), closed=True, line_end=line_end
    )
    for cut in range(0, len(sent), 11):
        connections = 0

        async def play(exchange: Exchange, cut: int = cut) -> None:
            nonlocal connections
            if live(exchange) is None:
                await exchange.send(page(b"", 0))
                return
            connections += 1
            await begin_events(exchange)
            start = position(exchange)
            if connections == 1:
                await exchange.chunk(sent[:cut] or b":")
                exchange.reset()
            elif start == 0:
                await exchange.chunk(sent)
                await exchange.end()
            else:
                await exchange.chunk(frame(WHOLE[start:], len(WHOLE), closed=True, line_end=line_end))
                await exchange.end()

        assert (await read_all(kind, play, live="sse"))[0] == WHOLE, cut


async def test_a_long_page_that_breaks_off_is_repeated_without_what_was_given(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 1000)
    whole = bytes(range(256)) * 40
    attempts = 0

    async def play(exchange: Exchange) -> None:
        nonlocal attempts
        attempts += 1
        answer = page(whole, len(whole), closed=True)
        await exchange.send(answer[: 2500 * attempts])
        if 2500 * attempts < len(answer):
            exchange.reset()

    assert (await read_all(kind, play, live=False))[0] == whole
    assert attempts > 3


async def test_a_burst_of_errors_is_waited_out(kind: Kind) -> None:
    attempts = 0

    async def play(exchange: Exchange) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 6:
            await exchange.answer([500, 502, 503, 504, 429][attempts - 1], b"", {"Retry-After": "0"})
        else:
            await exchange.send(page(WHOLE, len(WHOLE)))

    assert (await read_all(kind, play, live=False))[0] == WHOLE


async def answer_nothing(exchange: Exchange) -> None:
    await exchange.is_gone.wait()


async def promise_much(exchange: Exchange) -> None:
    fields = {**head(1), "Content-Length": str(10 * 1024**3)}
    await exchange.head(200, fields, is_chunked=False)
    await exchange.send(b"x" * 100)
    await exchange.is_gone.wait()


async def heartbeat_once(exchange: Exchange) -> None:
    if live(exchange) is None:
        await exchange.send(page(b"", 0))
        return
    if live(exchange) == "sse":
        await begin_events(exchange)
        await exchange.chunk(b": still here\n\n")
    exchange.reset()


def answering(status: int, body: bytes = b"", **fields: str) -> Script:
    async def play(exchange: Exchange) -> None:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        # The connection ends with the answer; a client that did not know might ask on it once more.
        await exchange.answer(status, body, {"Connection": "close", **headers})

    return play


def eventing(*frames: bytes) -> Script:
    """An empty page, then one live connection with these frames."""

    async def play(exchange: Exchange) -> None:
        if live(exchange) is None:
            await exchange.send(page(b"", 5))
            return
        await begin_events(exchange)
        for one in frames:
            await exchange.chunk(one)
        await exchange.end()

    return play


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (answering(500), ServerError),
        (answering(302, Location="/elsewhere"), ProtocolError),
        (answering(200, b"<html>", Content_Type="text/html"), ProtocolError),
        (answering(200, b"", Stream_Next_Offset="a b"), ProtocolError),
        (answering(200, b"", Stream_Next_Offset="now"), ProtocolError),
        (answering(200, b"", Stream_Next_Offset="x" * 300), ProtocolError),
        (answering(200, b"x", Stream_Next_Offset="a", Content_Encoding="gzip"), ProtocolError),
        (answering(204, Stream_Next_Offset="a"), ProtocolError),
        (answering(206, b"x", Stream_Next_Offset="a"), ProtocolError),
        (answering(403, b"\xff\xfe", Content_Type="text/plain"), ServerError),
        (answering(418, b"[" * 100_000, Content_Type="application/json"), ServerError),
        (eventing(frame(b"back", 4)), ProtocolError),
        (eventing(frame(b"here", 5)), ProtocolError),
        (eventing(frame(b"one", 8), frame(b"one", 8)), ProtocolError),
        (eventing(b"event: control\ndata: {\n\n"), ProtocolError),
        (eventing(b"event: control\ndata: []\n\n"), ProtocolError),
        (eventing(b'event: control\ndata: {"streamNextOffset": 7}\n\n'), ProtocolError),
        (eventing(b"event: data\ndata: not base64!\n\n"), ProtocolError),
        (eventing(*(b"data: " + b"x" * 1_000_000 + b"\n" for _ in range(18))), ProtocolError),
        (heartbeat_once, ConnectionFailed),
    ],
)
async def test_what_cannot_be_right_is_an_exception_of_ours(
    kind: Kind, script: Script, error: type[StreamkeepError]
) -> None:
    with pytest.raises(error):
        await read_all(kind, script, live="sse")


@pytest.mark.parametrize("script", [answer_nothing, promise_much])
async def test_a_server_that_falls_silent_again_and_again_is_given_up(kind: Kind, script: Script) -> None:
    with pytest.raises(ConnectionFailed):
        await read_all(kind, script, live="sse", patience=replace(HASTY, stall_seconds=0.3, max_reconnects=2))


@pytest.mark.parametrize("has_head", [True, False])
async def test_swallowed_events_are_replaced_by_long_polls(kind: Kind, has_head: bool) -> None:
    async def play(exchange: Exchange) -> None:
        mode = live(exchange)
        if mode is None:
            await exchange.send(page(b"", 0))
        elif mode == "sse":
            if has_head:
                await begin_events(exchange)
            await exchange.is_gone.wait()
        else:
            await exchange.send(page(WHOLE, len(WHOLE), closed=True))

    data, modes = await read_all(kind, play, live="sse", patience=replace(HASTY, stall_seconds=1.0))
    assert (data, modes) == (WHOLE, [None, "sse", "long-poll"])


async def test_a_server_without_base64_gives_its_text(kind: Kind) -> None:
    async def play(exchange: Exchange) -> None:
        if live(exchange) is None:
            await exchange.send(page(b"", 0, content_type="text/plain"))
            return
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        control = json.dumps({"streamNextOffset": offset(9), "streamClosed": True})
        text = f"event:data\ndata:  two spaces\ndata:\ndata:x\n\nevent: future\ndata: 1\n\nevent:control\ndata:{control}\n\n"
        await exchange.chunk(text.encode())
        await exchange.end()

    assert (await read_all(kind, play, live="sse"))[0] == b" two spaces\n\nx"


async def test_polls_that_do_not_wait_are_not_hurried(kind: Kind) -> None:
    async def play(exchange: Exchange) -> None:
        if live(exchange) is None:
            await exchange.send(page(b"", 0))
        else:
            await exchange.answer(204, b"", head(0))

    async with upstream(play) as server:
        async with opened(kind, f"{server.url}/s", live="long-poll", timeout=1.0) as response:
            with pytest.raises(httpx.ReadTimeout):
                await items(response.iter_bytes())
        assert len(server.calls) <= 8


@pytest.mark.parametrize("body", [b"[1, 2", b"{}", b"[1]x", b"[" * 100_000, b"\xff"])
async def test_messages_that_are_none_are_a_protocol_error(kind: Kind, body: bytes) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(page(body, len(body), content_type="application/json"))

    async with upstream(play) as server, opened(kind, f"{server.url}/s", live=False) as response:
        with pytest.raises(ProtocolError):
            await items(response.iter_json())


async def test_a_url_that_expires_is_renewed(kind: Kind) -> None:
    signatures = iter(["one", "two", "three"])
    valid = "one"

    async def play(exchange: Exchange) -> None:
        if f"signature={valid}" not in exchange.path:
            await exchange.answer(401, b'{"error": "signature_expired"}', {"Content-Type": "application/json"})
            return
        start = position(exchange)
        await exchange.send(page(WHOLE[start : start + 1], start + 1, closed=start + 1 == len(WHOLE)))

    async with upstream(play) as server:

        async def url() -> str:
            return f"{server.url}/s?signature={next(signatures)}"

        async with opened(kind, url, live="long-poll") as response:
            seen = await items(response.iter_bytes(), 2)
            valid = "two"
            seen += await items(response.iter_bytes(), 2)
            valid = "three"
            seen += await items(response.iter_bytes())
        assert b"".join(seen) == WHOLE
        with pytest.raises(ServerError, match="signature_expired"):
            async with opened(kind, f"{server.url}/s?signature=old"):
                pass


@pytest.mark.parametrize("status", [429, 500])
async def test_an_append_is_sent_again_only_when_it_was_refused(kind: Kind, status: int) -> None:
    async def play(exchange: Exchange) -> None:
        if exchange.method == "POST" and len(server.calls) == 2:
            await exchange.answer(status, b"", {})
        else:
            await exchange.answer(204, b"", {"Stream-Next-Offset": offset(1)})

    async with upstream(play) as server:
        handle = await created(kind, f"{server.url}/s")
        if status == 429:
            assert (await call(handle.append, b"x")).offset == offset(1)
        else:
            with pytest.raises(ServerError):
                await call(handle.append, b"x")
            assert len(server.calls) == 2
        await call(handle.disconnect)


async def test_a_secret_of_a_request_is_in_no_message(kind: Kind) -> None:
    async with upstream(answering(403, b"no")) as server:
        handle_url = f"{server.url}/s?signature=SECRET"
        with pytest.raises(ServerError) as caught:
            async with opened(kind, handle_url, headers={"Authorization": "SECRET"}):
                pass
        assert "SECRET" not in f"{caught.value!r} {caught.value}"
        with pytest.raises(ValueError, match="header") as bad:
            async with opened(kind, server.url, headers={"Authorization": "SECRET\n"}):
                pass
        assert "SECRET" not in str(bad.value)
