"""The bulk way of reading frames: it says the same as the slow one, or leaves the piece to it."""

from __future__ import annotations

import base64

import pytest

from streamkeep.client import ProtocolError
from streamkeep.client._rules.frames import Frame, take_frames
from streamkeep.client._rules.protocol import parse_control
from streamkeep.client._rules.reading import Live, StreamPosition
from streamkeep.client._rules.sse import EventDecoder
from streamkeep.proxy.rules import sse
from streamkeep.storage.rules.offsets import format_offset

BODY = bytes(range(256)) * 3


def frame(start: int, end: int, *, cursor: str = "7", is_up_to_date: bool = True) -> bytes:
    """As the proxy makes it."""
    offset = format_offset(end)
    told = sse.control_frame(offset, cursor, is_up_to_date=is_up_to_date)
    return sse.base64_frame(BODY[start:end], offset) + told


def slowly(wire: bytes) -> list[Frame]:
    events = EventDecoder().feed(b":\n\n" + wire)
    frames: list[Frame] = []
    for data, told in zip(events[::2], events[1::2], strict=True):
        control = parse_control(told.data)
        assert control.next_offset == data.id
        frames.append((base64.b64decode(data.data), control.next_offset, control.cursor, control.is_up_to_date))
    return frames


def test_frames_are_taken_as_the_decoder_would_take_them() -> None:
    wire = frame(0, 200) + frame(200, 201, cursor="8", is_up_to_date=False) + frame(201, 768)
    assert take_frames(wire) == (slowly(wire), len(wire))
    assert b"".join(data for data, *_ in take_frames(wire)[0]) == BODY


def test_a_cut_at_any_byte_takes_what_is_whole_and_no_more() -> None:
    first, second = frame(0, 100), frame(100, 300)
    for cut in range(len(first + second)):
        frames, taken = take_frames((first + second)[:cut])
        is_first_whole = cut >= len(first)
        assert taken == (len(first) if is_first_whole else 0), cut
        assert [data for data, *_ in frames] == ([BODY[:100]] if is_first_whole else []), cut


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
        frame(0, 9).replace(b"data:AA", b"data:A\xff"),
        frame(0, 9).replace(b"data:AA", b"data:=", 1),
        frame(0, 0),
        b"",
    ],
)
def test_what_is_not_as_usual_is_left_to_the_decoder(wire: bytes) -> None:
    assert take_frames(wire) == ([], 0)
    assert take_frames(frame(0, 100) + wire)[1] == len(frame(0, 100))


@pytest.mark.parametrize(
    "told",
    [
        sse.closing_frame(format_offset(9)),
        sse.control_frame(format_offset(10), "7", is_up_to_date=True),
        b'event: control\ndata:{"streamNextOffset":"%b","streamClosed":true}\n\n' % format_offset(9).encode(),
        b'event: control\ndata:{"streamNextOffset":"%b","streamCursor":"x\\u0022"}\n\n' % format_offset(9).encode(),
    ],
)
def test_a_control_event_that_says_more_is_left_to_its_reader_with_its_data(told: bytes) -> None:
    assert take_frames(sse.base64_frame(BODY[:9], format_offset(9)) + told) == ([], 0)


def test_frames_of_a_stream_are_taken_as_its_reader_would_take_their_events() -> None:
    wire = frame(0, 200) + frame(200, 201, cursor="8", is_up_to_date=False) + frame(201, 768, is_up_to_date=False)
    quick, slow = (StreamPosition("-1", Live.EVENTS) for _ in range(2))
    for position in (quick, slow):
        position.begin("text/plain")
    quick.receive_frames(take_frames(wire)[0])
    for event in EventDecoder().feed(wire):
        slow.receive_event(event, is_base64=True)
    assert b"".join(part for piece in quick.pieces for part in piece.parts) == BODY
    assert b"".join(part for piece in slow.pieces for part in piece.parts) == BODY
    assert (quick.offset, quick.cursor, quick.is_up_to_date) == (slow.offset, slow.cursor, slow.is_up_to_date)


@pytest.mark.parametrize("wire", [frame(0, 50), frame(0, 100), frame(100, 200) + frame(50, 100)])
def test_frames_that_lead_back_or_nowhere_are_refused(wire: bytes) -> None:
    position = StreamPosition(format_offset(100), Live.EVENTS)
    with pytest.raises(ProtocolError):
        position.receive_frames(take_frames(wire)[0])
