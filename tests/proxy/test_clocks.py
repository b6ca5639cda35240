"""Upstream's clocks, as a request asks for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkeep.proxy.rules.clocks import Clocks
from streamkeep.proxy.rules.wire import BadRequest
from tests.serving import Proxy
from tests.upstream import upstream, whole

CLOCKS = Clocks(10, 600, 300, 3600)


@pytest.mark.parametrize(
    ("text", "clocks"),
    [
        ("idle=10", Clocks(10, 600, 10, 3600)),
        ("connect=1, first_byte=2.5,idle = 3 , total=4", Clocks(1, 2.5, 3, 4)),
        ("total=3600", CLOCKS),
        ("total=0.001", Clocks(10, 600, 300, 0.001)),
    ],
)
def test_a_request_shortens_the_clocks_that_it_names(text: str, clocks: Clocks) -> None:
    assert CLOCKS.shortened(text) == clocks


BAD = ["", "10", "idle", "idle=", "idle=0", "idle=-1", "idle=1e2", "idle=nan", "idle=inf", "idle=1 s", "idle=1;total=2"]
BAD += [
    "idle=1,",
    "idle=1, idle=2",
    "Idle=1",
    "sleep=1",
    "idle=٣",
    "idle=1=2",
    "idle=300.001",
    "connect=11",
    "idle=9999999999",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_longer_or_no_clock_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        CLOCKS.shortened(text)


@given(st.one_of(st.text(), st.from_regex(r"(connect|first_byte|idle|total)=[0-9.]{1,6}(, idle=[0-9.]{1,4})?")))
def test_no_clock_runs_longer_than_the_operators(text: str) -> None:
    try:
        clocks = CLOCKS.shortened(text)
    except BadRequest:
        return
    for name in Clocks.__dataclass_fields__:
        assert 0 < getattr(clocks, name) <= getattr(CLOCKS, name)


async def test_a_bad_clock_is_400_and_calls_nobody(proxy: Proxy) -> None:
    async with upstream(whole(b"ok", "text/plain")) as server:
        answer = await proxy.create("chat", "1", server.url, Streamkeep_Timeout="idle=301")
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_timeout")
        assert answer.json()["message"] == "idle may be up to 300 seconds here"
        assert (await proxy.client.get("/api/chat/1")).status_code == 404
        assert server.calls == []
