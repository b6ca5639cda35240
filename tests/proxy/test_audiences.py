"""When a generation is stopped for want of readers: the policy as it is asked for, and the judgement without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkeep.proxy.rules.audiences import AudienceWatch
from streamkeep.proxy.rules.wire import BadRequest, cancel_after_seconds
from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import upstream, whole


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        ("continue", None),
        ("cancel", 0.0),
        (" Cancel ", 0.0),
        ("cancel_after=30", 30.0),
        ("cancel_after=0", 0.0),
        ("cancel_after=0.25", 0.25),
        ("cancel_after=999999.999", 999999.999),
    ],
)
def test_a_policy_says_how_long_to_go_on(policy: str, seconds: float | None) -> None:
    assert cancel_after_seconds(policy) == seconds


BAD = ["", "stop", "cancel_after", "cancel_after=", "cancel_after=-1", "cancel_after=1e3", "cancel_after=nan"]
BAD += ["cancel_after=1000000", "cancel_after=1.", "cancel_after=٣", "cancel, continue", "cancel_after=1 s"]


@pytest.mark.parametrize("policy", BAD)
def test_what_is_no_policy_is_refused(policy: str) -> None:
    with pytest.raises(BadRequest):
        cancel_after_seconds(policy)


@given(st.text())
def test_any_text_is_a_policy_or_refused(policy: str) -> None:
    try:
        seconds = cancel_after_seconds(policy)
    except BadRequest:
        return
    assert seconds is None or 0 <= seconds < 1_000_000


async def test_a_bad_policy_is_400_and_calls_nobody(proxy: Proxy) -> None:
    async with upstream(whole(b"ok", "text/plain")) as server:
        for policy in ("never", "cancel_after=soon", ""):
            answer = await proxy.create("chat", "1", server.url, Streamkeep_On_Disconnect=policy)
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid_on_disconnect")
        twice = [("Streamkeep-On-Disconnect", "cancel")] * 2 + [("X-Proxy-Url", server.url)]
        assert (await proxy.client.post("/api/chat/1", headers=twice)).status_code == 400
        assert (await proxy.client.get("/api/chat/1")).status_code == 404
        assert (await proxy.create("chat", "1", server.url, Streamkeep_On_Disconnect="cancel")).status_code == 200
        assert server.calls[0].header("Streamkeep-On-Disconnect") is None
        assert len(server.calls) == 1


async def test_generations_that_go_on_anyway_tell_nobody_of_their_readers() -> None:
    store = MemoryStore()
    async with serving(store) as proxy, upstream(whole(b"ok", "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.read_all("chat", "1")
        assert repr(proxy.service.audiences).startswith("Audiences(0 ")


def watch() -> AudienceWatch:
    return AudienceWatch(max_gap_seconds=3.0, settle_seconds=9.0)


def test_who_has_been_without_readers_for_long_enough_is_overdue() -> None:
    readerless = {1: 5.0, 2: 4.9, 3: -2.0, 4: 0.0}
    assert watch().overdue(readerless, {1: 5.0, 2: 5.0, 3: 0.0, 4: 0.0, 5: 0.0}, now=0.0) == [1, 4]


def test_after_a_gap_in_contact_nobody_is_judged_until_every_process_could_tell_again() -> None:
    watching, gone, limits = watch(), {1: 60.0}, {1: 5.0}
    assert watching.overdue({1: -1.0}, limits, now=100.0) == []
    assert watching.overdue(gone, limits, now=103.0) == []
    for now in range(104, 112):
        assert watching.overdue(gone, limits, now=now) == []
    assert watching.overdue(gone, limits, now=112.0) == [1]


def test_a_time_with_nothing_to_look_at_is_no_gap() -> None:
    watching = watch()
    watching.overdue({}, {}, now=0.0)
    watching.rest()
    assert watching.overdue({1: 5.0}, {1: 5.0}, now=50.0) == [1]
