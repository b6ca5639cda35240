"""Reading on through cuts, stalls, rotations and strange answers: the caller sees one unbroken body, or an exception."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import httpx
import pytest

from streamkeep.client import (
    ConnectionFailed,
    GenerationError,
    MemoryStore,
    OwnerLost,
    Patience,
    ProtocolError,
    RecordState,
    ServerError,
)
from streamkeep.storage import MemoryStore as Streams
from tests.client.both import QUICK, Client, Kind
from tests.client.conftest import MakeClient
from tests.client.scripted import (
    REQUEST,
    SESSION,
    ScriptedProxy,
    control_event,
    data_event,
    offset,
    reset,
    scripted_proxy,
    silence,
)
from tests.serving import serving
from tests.upstream import Exchange, upstream

BODY = b"0123456789"
HASTY = Patience(send_seconds=1.0, silence_seconds=2.0, pause_seconds=0.05)
UPSTREAM = "http://127.0.0.1:9/"


async def test_t1_a_connection_cut_anywhere_is_taken_up_at_the_next_byte(make_client: MakeClient) -> None:
    wire = control_event(0) + b"".join(
        data_event(BODY[at : at + 2], at + 2) + control_event(at + 2) for at in range(0, 10, 2)
    )
    async with scripted_proxy() as proxy:
        client = make_client(proxy.url)
        for cut in range(0, len(wire), 7):
            proxy.data = [proxy.sending(wire[:cut], then="reset" if cut % 2 else "end"), proxy.serve]
            assert await (await client.fetch(UPSTREAM)).rest() == BODY


async def test_bytes_that_come_again_are_given_once(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        proxy.data = [
            proxy.sending(data_event(BODY[:4], 4), then="reset"),
            proxy.sending(data_event(BODY[:6], 6), data_event(BODY[2:5], 5), data_event(BODY[5:], 10), then="reset"),
            proxy.serve,
        ]
        assert await (await make_client(proxy.url).fetch(UPSTREAM)).rest() == BODY
        assert proxy.reads() == [("sse", 0), ("sse", 4), ("sse", 10)]


async def test_t11_rotation_is_not_the_end(make_client: MakeClient, session: str) -> None:
    """The proxy ends live reads all the time, and lets the URLs expire; the caller notices neither."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        for number in range(20):
            await exchange.chunk(b"%d," % number)
            await asyncio.sleep(0.12)
        await exchange.end()

    settings = {"sse_seconds": 0.1, "heartbeat_seconds": 0.05, "url_seconds": 1.0}
    async with serving(Streams(), **settings) as proxy, upstream(play) as server:
        reading = await make_client(proxy.url).fetch(server.url, session_id=session)
        assert await reading.rest() == b"".join(b"%d," % number for number in range(20))
        assert len(server.calls) == 1


async def test_an_expired_url_is_renewed(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        proxy.data = [
            proxy.failing(401, "signature_expired"),
            proxy.sending(data_event(BODY[:4], 4), then="reset"),
            proxy.failing(401, "signature_expired"),
            proxy.serve,
        ]
        assert await (await make_client(proxy.url).fetch(UPSTREAM)).rest() == BODY
        assert proxy.paths("/api")[1:] == [f"/api/{SESSION}/{REQUEST}"] * 2


async def test_a_renewed_url_that_was_accepted_may_expire_before_it_brings_anything(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        proxy.data = [
            proxy.failing(401, "signature_expired"),
            proxy.sending(then="end"),
            proxy.failing(401, "signature_expired"),
            proxy.serve,
        ]
        assert await (await make_client(proxy.url).fetch(UPSTREAM)).rest() == BODY
        assert proxy.paths("/api")[1:] == [f"/api/{SESSION}/{REQUEST}"] * 2


async def test_a_url_that_cannot_be_renewed_is_an_error(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        proxy.data = [proxy.failing(401, "signature_invalid")]
        body, raised = await (await make_client(proxy.url).fetch(UPSTREAM)).failing_rest()
        assert body == b""
        assert isinstance(raised, ServerError)
        assert (raised.status, raised.code) == (401, "signature_invalid")


@pytest.mark.parametrize("then", ["end", "reset"])
async def test_where_events_never_get_through_long_polls_do(make_client: MakeClient, then: str) -> None:
    async with scripted_proxy() as proxy:
        swallowed = proxy.sending(then=then)

        async def short_poll(exchange: Exchange) -> None:
            await proxy.poll(exchange, BODY[:3], 3)

        async def empty_poll(exchange: Exchange) -> None:
            head = {"Stream-Next-Offset": offset(3), "Stream-Cursor": "8"}
            await exchange.head(204, head, is_chunked=False)

        proxy.data = [swallowed, swallowed, swallowed, short_poll, empty_poll, proxy.serve]
        assert await (await make_client(proxy.url).fetch(UPSTREAM)).rest() == BODY
        assert proxy.reads() == [*[("sse", 0)] * 3, ("long-poll", 0), ("long-poll", 3), ("long-poll", 3)]
        assert "cursor=8" in proxy.paths("/stream/data")[-1]


async def test_a_connection_without_a_sign_of_life_is_replaced(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        hangs = proxy.sending(data_event(BODY[:4], 4), then="silence")
        proxy.data = [hangs, silence, proxy.serve]
        reading = await make_client(proxy.url, patience=replace(QUICK, stall_seconds=1.0)).fetch(UPSTREAM)
        assert await reading.rest() == BODY
        assert proxy.reads() == [("sse", 0), ("sse", 4), ("sse", 4)]


@pytest.mark.parametrize("has_head", [True, False])
async def test_a_connection_that_hangs_before_its_first_event_leads_to_long_polls(
    make_client: MakeClient, has_head: bool
) -> None:
    async with scripted_proxy() as proxy:
        proxy.data = [proxy.sending(then="silence") if has_head else silence, proxy.serve]
        reading = await make_client(proxy.url, patience=replace(QUICK, stall_seconds=1.0)).fetch(UPSTREAM)
        assert await reading.rest() == BODY
        assert proxy.reads() == [("sse", 0), ("long-poll", 0)]


async def test_heartbeats_keep_a_connection() -> None:
    """Both kinds at once, since it takes longer than a connection may be silent."""

    async def slowly(exchange: Exchange) -> None:
        await proxy.begin(exchange)
        await exchange.chunk(control_event(0))
        for _ in range(45):
            await asyncio.sleep(0.1)
            await exchange.chunk(b":\n\n")
        await exchange.chunk(data_event(BODY, 10) + control_event(10, is_closed=True))
        await exchange.end()

    async def read(kind: Kind) -> bytes:
        client = Client(kind, proxy.url, patience=replace(QUICK, stall_seconds=4.0))
        try:
            return await (await client.fetch(UPSTREAM)).rest()
        finally:
            await client.close()

    async with scripted_proxy() as proxy:
        proxy.data = [slowly]
        assert set(await asyncio.gather(read("sync"), read("async"))) == {BODY}
        assert len(proxy.reads()) == 2


async def test_the_callers_read_timeout_counts_bytes_of_the_body_alone(make_client: MakeClient) -> None:
    async def heartbeats(exchange: Exchange) -> None:
        await proxy.begin(exchange)
        await exchange.chunk(data_event(BODY[:4], 4))
        while not exchange.is_gone.is_set():
            await exchange.chunk(b":\n\n")
            await asyncio.sleep(0.05)

    async with scripted_proxy() as proxy:
        proxy.data = [heartbeats]
        store = MemoryStore()
        reading = await make_client(proxy.url, store=store).fetch(UPSTREAM, session_id=SESSION, timeout=1.0)
        body, raised = await reading.failing_rest()
        assert (body, type(raised)) == (BODY[:4], httpx.ReadTimeout)
        (record,) = store.records(proxy.url, SESSION)
        assert (record.state, record.position) == (RecordState.OPEN, 4)


async def test_a_passing_outage_is_lived_through(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        proxy.data = [
            reset,
            proxy.failing(503, "storage_unavailable", Retry_After="0"),
            proxy.answering(502, b"<html>Bad gateway"),
            proxy.sending(data_event(BODY[:4], 4), then="reset"),
            reset,
            proxy.serve,
        ]
        proxy.control = [reset, proxy.failing(503, "storage_unavailable"), proxy.end]
        assert await (await make_client(proxy.url).fetch(UPSTREAM)).rest() == BODY


async def test_patience_ends_and_keeps_the_place(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        proxy.data = [proxy.sending(data_event(BODY[:4], 4), then="reset"), reset]
        store = MemoryStore()
        client = make_client(proxy.url, store=store, patience=HASTY)
        reading = await client.fetch(UPSTREAM, session_id=SESSION)
        body, raised = await reading.failing_rest()
        assert (body, type(raised)) == (BODY[:4], ConnectionFailed)
        assert store.records(proxy.url, SESSION)[0].position == 4
        proxy.data = [proxy.serve]
        resumed = await client.fetch(session_id=SESSION, resume=True)
        assert await resumed.rest() == BODY[4:]


async def test_a_connection_that_brings_nothing_new_is_not_made_for_ever(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        proxy.data = [proxy.sending(control_event(0))]
        client = make_client(proxy.url, patience=replace(QUICK, max_reconnects=5))
        body, raised = await (await client.fetch(UPSTREAM)).failing_rest()
        assert (body, type(raised)) == (b"", ConnectionFailed)
        assert len(proxy.reads()) == 6


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (410, "gone"), (400, "invalid_offset")])
async def test_a_final_refusal_of_a_read_is_an_error(make_client: MakeClient, status: int, code: str) -> None:
    async with scripted_proxy() as proxy:
        proxy.data = [proxy.sending(data_event(BODY[:4], 4), then="reset"), proxy.failing(status, code)]
        reading = await make_client(proxy.url).fetch(UPSTREAM)
        body, raised = await reading.failing_rest()
        assert body == BODY[:4]
        assert isinstance(raised, ServerError)
        assert (raised.status, raised.code) == (status, code)
        assert (await reading.failing_rest())[0] == b"", "it stays an error"


def strange_data(proxy: ScriptedProxy) -> list[tuple[str, object]]:
    events = {"Content_Type": "text/event-stream"}
    return [
        ("redirect", proxy.answering(302, Location="http://127.0.0.1:9/")),
        ("html", proxy.answering(200, b"<html>", Content_Type="text/html")),
        ("text events", proxy.answering(200, b"event: data\ndata: x\n\n", **events)),
        ("encoded", proxy.answering(200, b"x", Content_Encoding="gzip", Stream_SSE_Data_Encoding="base64", **events)),
        ("gap", proxy.sending(data_event(BODY[6:], 10))),
        ("before the start", proxy.sending(data_event(BODY, 4))),
        ("not base64", proxy.sending(b"event: data\ndata: ****\n\n")),
        ("no offset", proxy.sending(b"event: data\nid: 7\ndata: AAAA\n\n")),
        ("other tail", proxy.sending(data_event(BODY[:4], 4), control_event(5))),
        ("no JSON", proxy.sending(b"event: control\ndata: {\n\n")),
        ("endless event", proxy.sending(b"data: " + b"x" * (17 * 1024 * 1024))),
    ]


@pytest.mark.parametrize("number", range(11))
async def test_a_stream_that_cannot_be_right_is_a_protocol_error(make_client: MakeClient, number: int) -> None:
    async with scripted_proxy() as proxy:
        _, step = strange_data(proxy)[number]
        proxy.data = [step]  # type: ignore[list-item]  # one list of many kinds of steps
        _, raised = await (await make_client(proxy.url).fetch(UPSTREAM)).failing_rest()
        assert type(raised) is ProtocolError
        assert "secret" not in str(raised)


async def test_an_ending_that_does_not_fit_the_data_is_a_protocol_error(make_client: MakeClient) -> None:
    async def elsewhere(exchange: Exchange) -> None:
        await proxy.end_as(exchange, "done", "complete", 11)

    async with scripted_proxy() as proxy:
        proxy.control = [elsewhere]
        body, raised = await (await make_client(proxy.url).fetch(UPSTREAM)).failing_rest()
        assert (body, type(raised)) == (BODY, ProtocolError)


@pytest.mark.parametrize(("code", "error"), [("owner_lost", OwnerLost), ("a_code_of_the_future", GenerationError)])
async def test_an_ending_is_told_by_its_code(make_client: MakeClient, code: str, error: type[GenerationError]) -> None:
    async def ending(exchange: Exchange) -> None:
        await proxy.end_as(exchange, "error", code)

    async with scripted_proxy() as proxy:
        proxy.control = [ending]
        body, raised = await (await make_client(proxy.url).fetch(UPSTREAM)).failing_rest()
        assert (body, type(raised)) == (BODY, error)


async def test_a_creation_that_was_not_answered_is_repeated_with_the_same_ids(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        proxy.creations = [
            reset,
            proxy.failing(503, "draining", Retry_After="0"),
            proxy.failing(500, "internal_error"),
            proxy.answering(504, b"<html>Gateway timeout"),
            proxy.create,
        ]
        reading = await make_client(proxy.url).fetch(UPSTREAM, content=b"question")
        assert await reading.rest() == BODY
        assert len(set(proxy.paths("/api"))) == 1
        assert proxy.server is not None
        assert [call.body for call in proxy.server.calls[:5]] == [b"question"] * 5


async def test_a_streamed_request_is_not_repeated(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        proxy.creations = [reset]
        client = make_client(proxy.url)

        async def feed() -> object:
            yield b"x" * 100

        with pytest.raises(ConnectionFailed):
            await client.fetch(UPSTREAM, content=iter([b"x" * 100]) if client.kind == "sync" else feed())
        assert len(proxy.paths("/api")) == 1


async def test_what_cannot_succeed_is_not_repeated(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        client = make_client(proxy.url)
        for status, code in ((502, "upstream_unreachable"), (403, "upstream_not_allowed"), (413, "body_too_large")):
            proxy.creations = [proxy.failing(status, code)]
            with pytest.raises(ServerError) as caught:
                await client.fetch(UPSTREAM)
            assert (caught.value.status, caught.value.code) == (status, code)
        assert len(proxy.paths("/api")) == 3


async def test_no_proxy_at_all_is_a_connection_error_that_keeps_the_record(make_client: MakeClient) -> None:
    store = MemoryStore()
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9 cannot be reached"):
        await make_client("http://127.0.0.1:9", store=store, patience=HASTY).fetch(UPSTREAM, session_id="chat")
    assert [record.state for record in store.records("http://127.0.0.1:9", "chat")] == [RecordState.OPEN]


async def test_another_server_in_the_proxys_place_is_a_protocol_error(make_client: MakeClient) -> None:
    async with scripted_proxy() as proxy:
        client = make_client(proxy.url)
        for step in (
            proxy.answering(200, b"<html>", Content_Type="text/html"),
            proxy.answering(200, b"{}", Content_Type="application/json"),
            proxy.answering(307, Location="http://127.0.0.1:9/"),
            proxy.answering(200, b"[" + b" " * (5 * 1024 * 1024), Content_Type="application/json"),
        ):
            proxy.creations = [step]
            with pytest.raises(ProtocolError):
                await client.fetch(UPSTREAM)


async def test_secrets_stand_in_no_log_and_no_message(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with scripted_proxy() as proxy:
        proxy.data = [proxy.sending(data_event(BODY[:4], 4), then="reset"), proxy.failing(404, "not_found")]
        client = make_client(proxy.url, auth={"Streamkeep-Key": "our-secret"})
        with pytest.raises(httpx.LocalProtocolError) as caught:
            await client.fetch(UPSTREAM, headers={"Authorization": "Bearer vendors-secret\n"})
        reading = await client.fetch(UPSTREAM, headers={"Authorization": "Bearer vendors-secret"})
        _, raised = await reading.failing_rest()
    shown = caplog.text + repr(client._client) + str(raised) + str(caught.value)
    assert "secret" not in shown
