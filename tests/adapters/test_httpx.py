"""`streamkeep.adapters.httpx`: its clients, and their responses given back."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from streamkeep.adapters.httpx import durable_async_httpx, durable_httpx, resume_httpx
from streamkeep.client import MemoryStore, NothingToResume, ResumeReason, Truncated
from tests.serving import Proxy

QUESTION = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "What does the river say?"}]}
PACED = {"Fake-Rate": "40", "Fake-Tokens": "30"}


async def test_a_response_that_was_left_is_resumed_whole(proxy: Proxy, vendor: str, session: str) -> None:
    def blocking() -> list[bytes]:
        with (
            durable_httpx(proxy.url, session=session, store=MemoryStore(), base_url=vendor) as first,
            durable_httpx(proxy.url, store=MemoryStore()) as second,
        ):
            headers = {**PACED, "X-Request-ID": "1"}
            with first.stream("POST", "/v1/chat/completions", json=QUESTION, headers=headers) as left:
                bodies = [next(left.iter_bytes())]
            for resumed in (resume_httpx(first, session), resume_httpx(second, session, request_id="1")):
                with resumed as response:
                    assert response.headers["Content-Type"].startswith("text/event-stream")
                    assert response.status_code == 200
                    bodies.append(response.read())
            return bodies

    begun, *wholes = await asyncio.to_thread(blocking)
    assert wholes == [await proxy.read_all(session, "1")] * 2
    assert wholes[0].startswith(begun)
    assert len(begun) < len(wholes[0])


async def test_an_async_response_that_was_left_is_resumed_whole(proxy: Proxy, vendor: str, session: str) -> None:
    async with durable_async_httpx(proxy.url, session=session, store=MemoryStore(), base_url=vendor) as client:
        async with client.stream("POST", "/v1/chat/completions", json=QUESTION, headers=PACED) as left:
            begun = await anext(left.aiter_bytes())
        async with resume_httpx(client, session) as resumed:
            whole = await resumed.aread()
    assert whole == await proxy.read_all(session, resumed.headers["Streamkeep-Request-ID"])
    assert whole.startswith(begun)
    assert len(begun) < len(whole)


async def test_errors_are_upstreams_answers_and_ours(proxy: Proxy, vendor: str, session: str) -> None:
    async with durable_async_httpx(proxy.url, session=session, store=MemoryStore(), base_url=vendor) as client:
        with pytest.raises(NothingToResume) as nothing:
            async with resume_httpx(client, session):
                pass
        assert nothing.value.reason is ResumeReason.NONE
        limited = {"Fake-Fault": "status:429", "Fake-Retry-After": "0"}
        refused = await client.post("/v1/chat/completions", json=QUESTION, headers=limited)
        assert (refused.status_code, refused.headers["Upstream-Status"]) == (429, "429")
        cut = {"Fake-Rate": "0", "Fake-Fault": "truncate@9", "X-Request-ID": "cut"}
        with pytest.raises(Truncated):
            await client.post("/v1/chat/completions", json=QUESTION, headers=cut)
        with pytest.raises(Truncated):
            async with resume_httpx(client, session, request_id="cut") as resumed:
                await resumed.aread()
    assert type(resumed) is httpx.Response
