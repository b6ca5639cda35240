"""The decoder of server-sent events: any split of the bytes gives the same events."""

from __future__ import annotations

import pytest

from streamkeep.client import ProtocolError
from streamkeep.client._rules.sse import Event, EventDecoder

WIRE = (
    b"\xef\xbb\xbfevent: data\nid: 1\ndata: AAAA\n\n"
    b": heartbeat\n\n"
    b"event: data\r\nid:2\r\ndata:BBBB\r\ndata:CC\r\n\r\n"
    b"event: control\rdata: {}\r\r"
    b"retry: 5\nunknown\ndata\n\n"
    b"event: data\ndata: \xf0\x9f\x8c\x8a\nid\n\n"
    b"event: nothing\n\n"
    b"data: cut"
)
EVENTS = [
    Event("data", b"AAAA", "1"),
    Event("data", b"BBBB\nCC", "2"),
    Event("control", b"{}"),
    Event("message", b""),
    Event("data", "🌊".encode(), ""),
]


def decode(*pieces: bytes) -> list[Event]:
    decoder = EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def feed_bytewise(decoder: EventDecoder, wire: bytes) -> None:
    for at in range(len(wire)):
        decoder.feed(wire[at : at + 1])


@pytest.mark.parametrize("cut", range(len(WIRE) + 1))
def test_a_split_at_any_index_gives_the_same_events(cut: int) -> None:
    assert decode(WIRE[:cut], WIRE[cut:]) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_of_any_size_give_the_same_events(size: int) -> None:
    assert decode(*(WIRE[at : at + size] for at in range(0, len(WIRE), size))) == EVENTS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_three_line_ends_count_between_any_two_fields(end: str) -> None:
    wire = f"event: data{end}id: 7{end}data: x{end}{end}".encode()
    for cut in range(len(wire) + 1):
        assert decode(wire[:cut], wire[cut:] + b"\n") == [Event("data", b"x", "7")]


def test_an_event_counts_only_with_its_blank_line() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: x\n") == []
    assert decoder.feed(b"\n") == [Event("message", b"x")]


def test_an_id_with_a_nul_is_not_one() -> None:
    assert decode(b"id: 1\x002\ndata: x\n\n") == [Event("message", b"x")]


@pytest.mark.parametrize("wire", [b"data: " + b"x" * 40, b"data: xxxxxxxxx\n" * 5, b": " + b"x" * 40])
def test_an_endless_event_is_refused(wire: bytes) -> None:
    decoder = EventDecoder(max_event_bytes=32)
    with pytest.raises(ProtocolError, match="32 bytes"):
        feed_bytewise(decoder, wire)


def test_events_within_the_bound_may_go_on_for_ever() -> None:
    decoder = EventDecoder(max_event_bytes=32)
    assert len(decoder.feed(b"data: 0123456789\n\n" * 1000)) == 1000
