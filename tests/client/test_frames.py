"""The bulk way of reading frames: it says the same as the slow one, or leaves the piece to it."""

from __future__ import annotations

import base64

import pytest

from streamkeep.client import ProtocolError
from streamkeep.client._rules.frames import take_frames, take_whole_frames
from streamkeep.client._rules.reading import Live, StreamPosition
from streamkeep.client._rules.sse import EventDecoder
from streamkeep.client._rules.wire import parse_stream_status, position_of
from streamkeep.proxy.rules import sse
from streamkeep.storage.rules.offsets import format_offset

BODY = bytes(range(256)) * 3


def frame(start: int, end: int, *, cursor: str = "7", is_up_to_date: bool = True) -> bytes:
    """As the proxy makes it."""
    offset = format_offset(end)
    told = sse.control_frame(offset, cursor, is_up_to_date=is_up_to_date)
    return sse.base64_frame(BODY[start:end], offset) + told


def slowly(wire: bytes) -> tuple[list[tuple[bytes, int]], str | None]:
    decoder = EventDecoder()
    frames: list[tuple[bytes, int]] = []
    cursor = None
    for event in decoder.feed(b":\n\n" + wire):
        if event.name == "data":
            frames.append((base64.b64decode(event.data), position_of(event.id)))
        else:
            cursor = parse_stream_status(event.data).cursor or cursor
    return frames, cursor


def test_frames_are_taken_as_the_decoder_would_take_them() -> None:
    wire = frame(0, 200) + frame(200, 201, cursor="8", is_up_to_date=False) + frame(201, 768)
    assert take_frames(wire) == (*slowly(wire), len(wire))
    assert b"".join(data for data, _ in take_frames(wire)[0]) == BODY


def test_a_cut_at_any_byte_takes_what_is_whole_and_no_more() -> None:
    first = sse.base64_frame(BODY[:100], format_offset(100))
    told = sse.control_frame(format_offset(100), "7", is_up_to_date=True)
    wire = first + told + frame(100, 300)
    for cut in range(len(wire)):
        frames, _, taken = take_frames(wire[:cut])
        whole = [end for end in (0, len(first), len(first + told)) if end <= cut]
        second_data = len(first + told) + len(sse.base64_frame(BODY[100:300], format_offset(300)))
        assert taken == (second_data if cut >= second_data else whole[-1]), cut
        assert [end for _, end in frames] == ([100, 300] if cut >= second_data else [100][: len(whole) - 1]), cut


@pytest.mark.parametrize(
    "wire",
    [
        sse.closing_frame(format_offset(9)),
        sse.HEARTBEAT,
        frame(0, 9).replace(b"\n", b"\r\n"),
        frame(0, 9).replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + frame(0, 9),
        frame(0, 9).replace(b"event: data", b"event:data"),
        frame(0, 9).replace(b"data:AA", b"data:A A"),
        frame(0, 9).replace(b"data:AAEC", b"data:AAEC\ndata:"),
        frame(0, 9).replace(b"data:AA", b"data:A\x00"),
        frame(0, 9).replace(b"data:AA", b"data:===="),
        frame(0, 9).replace(b"id: 0000", b"id: 1000"),
        frame(0, 9).replace(b"id: ", b"ID: "),
        b"",
    ],
)
def test_what_is_not_as_usual_is_left_to_the_decoder(wire: bytes) -> None:
    assert take_frames(wire) == ([], None, 0)


@pytest.mark.parametrize(
    "told",
    [
        sse.closing_frame(format_offset(9)),
        sse.control_frame(format_offset(10), "7", is_up_to_date=True),
        b'event: control\ndata:{"streamNextOffset":"%b","streamClosed":true}\n\n' % format_offset(9).encode(),
        b'event: control\ndata:{"streamNextOffset":"%b","streamCursor":"x\\u0022"}\n\n' % format_offset(9).encode(),
    ],
)
def test_a_control_event_that_says_more_is_left_to_its_reader(told: bytes) -> None:
    data = sse.base64_frame(BODY[:9], format_offset(9))
    assert take_frames(data + told) == ([(BODY[:9], 9)], None, len(data))


def test_whole_frames_of_a_stream_are_taken_as_its_reader_would_take_them_one_by_one() -> None:
    wire = frame(0, 200) + frame(200, 201, cursor="8", is_up_to_date=False) + frame(201, 768, is_up_to_date=False)
    quick, slow = (StreamPosition("-1", Live.EVENTS) for _ in range(2))
    for position in (quick, slow):
        position.begin("text/plain")
    frames, taken = take_whole_frames(wire)
    assert frames is not None
    assert taken == len(wire)
    quick.receive_frames(frames)
    for event in EventDecoder().feed(wire):
        slow.receive_event(event, is_base64=True)
    assert b"".join(part for piece in quick.pieces for part in piece.parts) == BODY
    assert b"".join(part for piece in slow.pieces for part in piece.parts) == BODY
    assert (quick.offset, quick.cursor, quick.is_up_to_date) == (slow.offset, slow.cursor, slow.is_up_to_date)


def test_of_whole_frames_nothing_is_taken_that_is_cut_or_leads_back() -> None:
    first, second = frame(0, 100), frame(100, 300)
    for cut in range(len(second)):
        frames, taken = take_whole_frames(first + second[:cut])
        assert frames is not None
        assert (frames.data, taken) == (BODY[:100], len(first)), cut
    for odd in (first, frame(0, 0), second.replace(b"data:", b"data:=", 1), sse.HEARTBEAT, b"x"):
        assert take_whole_frames(first + odd)[1] == len(first)
    assert take_whole_frames(sse.closing_frame(format_offset(9))) == (None, 0)
    position = StreamPosition(format_offset(100), Live.EVENTS)
    frames, _ = take_whole_frames(first)
    assert frames is not None
    with pytest.raises(ProtocolError):
        position.receive_frames(frames)
