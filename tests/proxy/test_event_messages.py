"""Events become messages, however the body is cut and wherever a reader begins."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkeep.proxy.rules import event_messages
from streamkeep.proxy.rules.event_messages import CONTEXT_BYTES, MAX_EVENT_BYTES, Held, begin, decode, finish, last_end
from streamkeep.storage.rules.json_messages import to_array

PIECES = [
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b" ", b":", b": ping\n\n", b"\xef\xbb\xbf"),
    *(
        b"data:",
        b"data: ",
        b"data",
        b"event: x\n",
        b"id: 7\n",
        b"[DONE]",
        b"[1,",
        b"2]",
        b'{"a": "\xe2\x98\x83"}',
        b"\xff",
    ),
]
BODIES = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)


def messages(stored: bytes) -> list[object]:
    found = json.loads(to_array(stored))
    assert isinstance(found, list)
    return found


def at(body: bytes, position: int) -> Held:
    return begin(position, body[max(0, position - CONTEXT_BYTES) : position])


def read(body: bytes, position: int = 0) -> list[object]:
    """All messages from a position on."""
    stored, held = decode(at(body, position), body[position:])
    return messages(stored + finish(held))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", []),
        (b"data: 1\n\n", [1]),
        (b"data:1\r\rdata:  2\r\n\r\ndata: 3\n\r\n", [1, 2, 3]),
        (b"\xef\xbb\xbfdata: 1\n\ndata: \xef\xbb\xbf2\n\n", [1, {"type": "text", "text": "\ufeff2"}]),
        (b'data: {"a":\ndata: 1}\n\n', [{"a": 1}]),
        (b": ping\n\nevent: x\nid: 1\nretry: 5\n\n", []),
        (b'event: x\nid: 1\ndata: "x"\n\n', ["x"]),
        (b"data: [DONE]\n\ndata:\n\ndata\n\ndata: \t\n\n", []),
        (b"data: [1, 2]\n\n", [[1, 2]]),
        (b"data: one\ndata: two\n\n", [{"type": "text", "text": "one\ntwo"}]),
        (b"data: NaN\n\ndata: 1 2\n\n", [{"type": "text", "text": "NaN"}, {"type": "text", "text": "1 2"}]),
        (b'data: "\x1e\x00"\n\n', [{"type": "text", "text": '"\x1e\x00"'}]),
        (b'data: "\xff"\n\n', ["\ufffd"]),
        (b"data: 1\n\ndata: 2", [1, 2]),
        (b'data: 1\n\ndata: {"brok', [1]),
        (b"datas: 1\n\nDATA: 2\n\n data: 3\n\n", []),
    ],
)
def test_events_become_messages(body: bytes, expected: list[object]) -> None:
    assert read(body) == expected


def test_json_is_kept_as_it_was_written() -> None:
    text = b'{"b": 12345678901234567890123, "a":1.50,"a" : "\\u00e9"}'
    assert decode(begin(0, b""), b"data: " + text + b"\n\n")[0] == text + b"\x1e"


def test_json_that_is_nested_too_deeply_is_text() -> None:
    assert read(b"data: " + b"[" * 100_000 + b"\n\n") == [{"type": "text", "text": "[" * 100_000}]


@given(BODIES, st.data())
def test_however_a_body_is_cut_its_messages_are_the_same(body: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    held, stored, resumable = begin(0, b""), b"", [(0, 0)]
    for start, stop in pairwise([0, *cuts, len(body)]):
        found, held = decode(held, body[start:stop])
        stored += found
        resumable.append((held.position, len(messages(stored))))
        assert held.received == stop
    whole = read(body)
    assert messages(stored + finish(held)) == whole
    for position, count in resumable:
        assert read(body, position) == whole[count:]


@given(BODIES)
def test_what_is_read_in_single_bytes_is_read_the_same(body: bytes) -> None:
    held, stored = begin(0, b""), b""
    for index in range(len(body)):
        found, held = decode(held, body[index : index + 1])
        stored += found
    assert messages(stored + finish(held)) == read(body)


@given(BODIES, st.data())
def test_any_position_is_legal_and_passes_over_the_rest_of_an_event(body: bytes, data: st.DataObject) -> None:
    whole = read(body)
    rest = read(body, data.draw(st.integers(0, len(body))))
    assert rest == whole[len(whole) - len(rest) :]


@given(BODIES, st.data())
def test_nothing_is_lost_behind_the_last_end_of_an_event(body: bytes, data: st.DataObject) -> None:
    tail = data.draw(st.integers(0, len(body)))
    stored, _ = decode(begin(0, b""), body[:tail])
    end = last_end(body[:tail]) or 0
    assert messages(stored) + read(body, end) == read(body)


@pytest.mark.parametrize("step", [64 * 1024, MAX_EVENT_BYTES * 2])
def test_an_event_without_an_end_is_one_error_and_holds_nothing(step: int) -> None:
    held, stored = begin(0, b""), b""
    body = b"data: 1\n\ndata: " + b"x" * (2 * MAX_EVENT_BYTES) + b"\n\ndata: 2\n\n"
    for start in range(0, len(body), step):
        found, held = decode(held, body[start : start + step])
        stored += found
        assert held.received - held.position <= MAX_EVENT_BYTES
        assert len(held.event.joined()) == held.received - held.position
    first, error, last = messages(stored)
    assert (first, last) == (1, 2)
    assert error == {"type": "error", "errorText": f"an event of more than {MAX_EVENT_BYTES} bytes was left out"}


def test_the_largest_event_is_a_message() -> None:
    event = b'data: "' + b"x" * (MAX_EVENT_BYTES - 10) + b'"\n\n'
    assert len(event) == MAX_EVENT_BYTES
    assert len(read(event)) == len(read(event[:-1] + b"x\n\n")) == 1
    assert isinstance(read(event)[0], str)
    assert isinstance(read(b" " + event)[0], dict)


def test_an_ending_other_than_done_is_an_error_message() -> None:
    def ending(event: str) -> bytes:
        return event_messages.ending_message(json.dumps({"event": event, "message": "why ☃"}).encode())

    assert ending("done") == b""
    assert [messages(ending(event)) for event in ("error", "cancelled")] == [
        [{"type": "error", "errorText": "why ☃"}]
    ] * 2
