"""The smaller rules: names on the wire, which read comes next, and which call repeats another."""

from __future__ import annotations

import json

import pytest

from streamkeep.client import ProtocolError
from streamkeep.client._rules import wire
from streamkeep.client._rules.attempts import FailedAttempts, Ids, is_repeat
from streamkeep.client._rules.outages import Outage
from streamkeep.client._rules.position import Read, ReadPlan
from streamkeep.client._rules.wire import ControlEvent, Steering

CREATION = {
    "sessionId": "s",
    "requestId": "r",
    "streamUrl": "http://127.0.0.1:4000/stream/data?signature=1",
    "controlUrl": "http://127.0.0.1:4000/stream/control?signature=1",
    "state": "running",
    "contentType": "text/event-stream",
    "upstreamStatus": 200,
    "upstreamHeaders": {"X-RateLimit-Remaining": "9", "content-length": "12"},
}


@pytest.mark.parametrize("url", ["http://h:1/p", "http://h:1/p/", "http://h:1/p/api", "http://h:1/p/api/"])
def test_the_proxys_url_may_end_in_api_or_a_slash(url: str) -> None:
    assert wire.proxy_base(url) == "http://h:1/p"


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://", "http://u:p@h", "http://h?x=1", "http://h#x"])
def test_a_proxys_url_that_is_more_or_less_than_a_place_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="proxy's URL"):
        wire.proxy_base(url)


def test_ids_are_quoted_in_paths() -> None:
    assert wire.api_url("http://h", "a@b:c", "active") == "http://h/api/a%40b%3Ac/active"


@pytest.mark.parametrize("position", [0, 1, 10**15])
def test_offsets_go_both_ways(position: int) -> None:
    assert wire.position_of(wire.offset_of(position)) == position


@pytest.mark.parametrize("offset", [None, "", "-1", "now", "1_2", "0" * 16 + "_" + "1" * 15, f"{wire.offset_of(1)}\n"])
def test_what_is_no_offset_is_refused(offset: str | None) -> None:
    with pytest.raises(ProtocolError):
        wire.position_of(offset)


def test_read_parameters_go_before_those_of_the_url() -> None:
    url = wire.read_url("http://h/stream/data?signature=a%2Bb&offset=-1", offset="now", live=None)
    assert url == "http://h/stream/data?signature=a%2Bb&offset=now"


def test_the_control_stream_stands_beside_the_data_stream() -> None:
    assert wire.control_url_of("http://h/stream/data?a=1") == "http://h/stream/control?a=1"
    assert wire.control_url_of("http://h/v1/stream/x/data") == "http://h/v1/stream/x/control"
    with pytest.raises(ValueError, match="data stream"):
        wire.control_url_of("http://h/other")


def test_urls_are_shown_without_their_secrets() -> None:
    assert wire.without_query("http://user:pw@h:1/p?signature=x#y") == "http://h:1/p"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Steering()),
        ({"X-Session-ID": "s", "x-request-id": "r"}, Steering("s", "r")),
        ({"X-Resume-Active-Generation": "true"}, Steering(resumes=True)),
        ({"X-Resume-Active-Generation": "1"}, Steering(resumes=True)),
        ({"X-Resume-Active-Generation": ""}, Steering(resumes=True)),
        ({"X-Resume-Active-Generation": "False"}, Steering(resumes=False)),
        ({"X-Replay-From-Start": "true"}, Steering(replays=True)),
        ({"X-Replay-From-Start": "false"}, Steering(replays=False)),
        ({"X-Active-Generation-TTL": "1500"}, Steering(ttl_seconds=1.5)),
    ],
)
def test_headers_steer_a_call(headers: dict[str, str], expected: Steering) -> None:
    assert wire.steering([(name.encode(), value.encode()) for name, value in headers.items()]) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Session-ID", "no/slash"),
        ("X-Session-ID", ""),
        ("X-Request-ID", "active"),
        ("X-Request-ID", "a" * 201),
        ("X-Active-Generation-TTL", "soon"),
        ("X-Active-Generation-TTL", "-1"),
    ],
)
def test_headers_that_cannot_be_used_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"must match|cannot be|must be"):
        wire.steering([(name.encode(), value.encode())])


def test_steering_and_framing_headers_are_not_forwarded() -> None:
    headers = [
        *((b"Host", b"h"), (b"Connection", b"close"), (b"Accept-Encoding", b"gzip"), (b"Content-Length", b"3")),
        *((b"X-Session-ID", b"s"), (b"X-Resume-Active-Generation", b"true"), (b"X-Proxy-Url", b"http://evil")),
        (b"Streamkeep-View", b"json"),
        *((b"Authorization", b"Bearer vendor"), (b"X-Twice", b"1"), (b"X-Twice", b"2")),
    ]
    kept = [(b"Authorization", b"Bearer vendor"), (b"X-Twice", b"1"), (b"X-Twice", b"2")]
    assert wire.forwarded(headers, keeps_length=False) == kept
    assert wire.forwarded(headers, keeps_length=True) == [(b"Content-Length", b"3"), *kept]


def test_a_creation_gives_upstreams_headers_without_its_length() -> None:
    creation = wire.parse_creation(json.dumps(CREATION).encode())
    assert creation.status == 200
    assert creation.answer_headers() == [("x-ratelimit-remaining", "9"), ("content-type", "text/event-stream")]
    assert "signature" not in repr(creation)


@pytest.mark.parametrize(
    "changes",
    [
        {"sessionId": 1},
        {"requestId": None},
        {"state": None},
        {"streamUrl": "/stream/data"},
        {"streamUrl": "http://h:port/"},
        {"controlUrl": "file:///etc/passwd"},
        {"upstreamStatus": "200"},
        {"upstreamStatus": 99},
        {"upstreamHeaders": {"a": 1}},
        {"upstreamHeaders": []},
    ],
)
def test_a_creation_that_is_not_one_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        wire.parse_creation(json.dumps({**CREATION, **changes}).encode())


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.parse_creation(body)
    assert wire.parse_problem(body) is None


def test_the_control_stream_holds_one_ending() -> None:
    event = {"event": "error", "code": "stalled", "offset": wire.offset_of(7), "retryable": False, "message": "slow"}
    other = {"event": "heartbeat"}
    assert wire.parse_control(b"[]") is None
    assert wire.parse_control(json.dumps([other, event]).encode()) == ControlEvent("error", "stalled", 7, False, "slow")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("3", 3.0), ("soon", None), ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0), ("-1", None)],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert wire.retry_after_seconds(value, now=60.0) == seconds


BARREN, SILENT, FRUITFUL = (True, False), (True, True), (False, True)


@pytest.mark.parametrize(
    ("ended", "next_read"),
    [
        ([], Read.DATA_BY_EVENTS),
        ([BARREN, BARREN, FRUITFUL, BARREN, BARREN], Read.DATA_BY_EVENTS),
        ([BARREN, BARREN, BARREN], Read.DATA_BY_LONG_POLL),
        ([FRUITFUL], Read.DATA_BY_EVENTS),
        ([SILENT], Read.DATA_BY_LONG_POLL),
        ([FRUITFUL, SILENT, SILENT], Read.DATA_BY_EVENTS),
        ([FRUITFUL, SILENT, SILENT, SILENT], Read.DATA_BY_LONG_POLL),
        ([SILENT, FRUITFUL], Read.DATA_BY_LONG_POLL),
    ],
)
def test_connections_that_bring_no_event_lead_to_long_polls(ended: list[tuple[bool, bool]], next_read: Read) -> None:
    plan = ReadPlan()
    for was_barren, was_silent in ended:
        plan.events_ended(was_barren=was_barren, was_silent=was_silent)
    assert plan.next is next_read


@pytest.mark.parametrize("ended", [[], [SILENT]])
def test_after_the_data_comes_the_control_stream(ended: list[tuple[bool, bool]]) -> None:
    plan = ReadPlan()
    plan.data_closed()
    for was_barren, was_silent in ended:
        plan.events_ended(was_barren=was_barren, was_silent=was_silent)
    assert plan.next is Read.CONTROL


def test_a_repeat_takes_over_the_ids_of_the_attempt_that_failed() -> None:
    attempts, ids = FailedAttempts(), Ids("s", "r")
    assert attempts.begins(b"q", is_repeat=False, now=0) is None
    attempts.failed(b"q", ids, now=1)
    assert attempts.begins(b"other", is_repeat=True, now=2) is None
    assert attempts.begins(b"q", is_repeat=True, now=2) == ids
    assert attempts.begins(b"q", is_repeat=True, now=2) is None, "each failure is taken over once"


def test_a_first_attempt_forgets_earlier_failures() -> None:
    attempts = FailedAttempts()
    attempts.failed(b"q", Ids("s", "r"), now=1)
    assert attempts.begins(b"q", is_repeat=False, now=2) is None
    assert attempts.begins(b"q", is_repeat=True, now=2) is None


def test_failures_are_remembered_for_a_while_and_not_without_bound() -> None:
    attempts = FailedAttempts()
    for number in range(1001):
        attempts.failed(str(number).encode(), Ids("s", str(number)), now=0)
    assert attempts.begins(b"0", is_repeat=True, now=1) is None
    assert attempts.begins(b"1", is_repeat=True, now=1) == Ids("s", "1")
    assert attempts.begins(b"2", is_repeat=True, now=301) is None


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("", False), ("0", False), ("1", True), ("2", True)])
def test_sdks_say_which_attempt_it_is(value: str | None, expected: bool) -> None:
    assert is_repeat(value) is expected


def test_an_outage_is_too_long_when_the_next_attempt_would_begin_too_late() -> None:
    outage = Outage(30.0)
    outage.attempt_begins(now=100)
    assert not outage.is_too_long(now=101, pause_seconds=1)
    outage.attempt_begins(now=102)
    assert not outage.is_too_long(now=103, pause_seconds=27.9)
    assert outage.is_too_long(now=103, pause_seconds=28)


def test_an_attempt_that_took_long_begins_a_new_outage() -> None:
    outage = Outage(30.0)
    outage.attempt_begins(now=100)
    assert not outage.is_too_long(now=160, pause_seconds=1)
    outage.attempt_begins(now=161)
    assert not outage.is_too_long(now=162, pause_seconds=5)
    outage.attempt_begins(now=185)
    assert outage.is_too_long(now=186, pause_seconds=5)


def test_without_patience_there_is_no_second_attempt() -> None:
    outage = Outage(0.0)
    outage.attempt_begins(now=100)
    assert outage.is_too_long(now=100, pause_seconds=0)
