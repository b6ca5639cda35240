"""One body out of two streams: whatever the order in which data, control, cuts and repeats come."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from streamkeep.client import ProtocolError
from streamkeep.client._rules.reassembly import Body, Done, Failed, NeedData, Reassembly
from streamkeep.client._rules.wire import ControlEvent

TEXT = "Grüße, 🌊 river! ".encode() * 40


def done(position: int) -> ControlEvent:
    return ControlEvent("done", "complete", position)


def taken(one: Reassembly) -> tuple[bytes, object]:
    """All that it gives now, and what it says then."""
    body = b""
    while isinstance(event := one.next_event(), Body):
        body += event.data
        assert event.end == one.given
    return body, event


@pytest.mark.parametrize("hundred", range(10))
def test_1000_random_interleavings_give_the_body_once_and_then_its_end(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        _interleave(random.Random(seed))


def _interleave(dice: random.Random) -> None:
    """Data in random pieces, cut off and sent again from an earlier point; the end at a random moment, perhaps twice."""
    body = TEXT[: dice.randrange(len(TEXT) + 1)]
    start = dice.choice([0, dice.randrange(len(body) + 1)])
    ending = done(len(body)) if dice.random() < 0.5 else ControlEvent("error", "truncated", len(body))
    one = Reassembly(start)
    got = b""
    is_told = False
    while True:
        for piece, end in _connection(dice, body, one.received):
            one.receive_data(piece, end)
            if dice.random() < 0.1:
                one.receive_control(ending)
                is_told = True
            if dice.random() < 0.5:
                more, event = taken(one)
                got += more
                assert isinstance(event, NeedData) or (is_told and one.given == len(body))
        if one.received == len(body) and dice.random() < 0.5:
            one.receive_control(ending)
            break
    more, event = taken(one)
    assert got + more == body[start:]
    assert event == (Done() if ending.is_done else Failed(ending))
    assert one.next_event() == event, "the end stays the end"


def _connection(dice: random.Random, body: bytes, received: int) -> Iterator[tuple[bytes, int]]:
    """One connection: from somewhere already had, in pieces, cut off anywhere or carried to the end."""
    position = dice.randrange(received + 1) if dice.random() < 0.7 else received
    stop = len(body) if dice.random() < 0.4 else dice.randrange(position, len(body) + 1)
    while position < stop:
        end = min(stop, position + dice.randrange(1, 60))
        yield body[position:end], end
        position = end


def test_the_end_waits_for_the_data_before_it() -> None:
    one = Reassembly()
    one.receive_control(done(3))
    assert one.next_event() == NeedData()
    one.receive_data(b"ab", 2)
    assert one.next_event() == Body(b"ab", 2)
    assert one.next_event() == NeedData()
    one.receive_data(b"c", 3)
    assert [one.next_event(), one.next_event()] == [Body(b"c", 3), Done()]


def test_an_empty_body_ends_at_once() -> None:
    one = Reassembly()
    assert not one.has_event
    one.receive_control(done(0))
    assert one.has_event
    assert one.next_event() == Done()


def test_what_was_had_before_is_cut_off_by_position() -> None:
    one = Reassembly(2)
    one.receive_data(b"abcd", 4)
    one.receive_data(b"bcd", 4)
    one.receive_data(b"cdef", 6)
    assert taken(one) == (b"cdef", NeedData())


def test_a_gap_is_refused() -> None:
    one = Reassembly()
    one.receive_data(b"ab", 2)
    with pytest.raises(ProtocolError, match="from position 2 to 3"):
        one.receive_data(b"d", 4)


def test_data_beyond_the_end_are_refused() -> None:
    one = Reassembly()
    one.receive_control(done(2))
    with pytest.raises(ProtocolError, match="beyond"):
        one.receive_data(b"abc", 3)


def test_an_end_before_data_that_came_is_refused() -> None:
    one = Reassembly()
    one.receive_data(b"abc", 3)
    with pytest.raises(ProtocolError, match="before data"):
        one.receive_control(done(2))


def test_a_second_other_end_is_refused() -> None:
    one = Reassembly()
    one.receive_control(done(2))
    one.receive_control(done(2))
    with pytest.raises(ProtocolError, match="twice"):
        one.receive_control(ControlEvent("error", "truncated", 2))


def test_data_from_before_the_start_of_everything_are_refused() -> None:
    with pytest.raises(ProtocolError):
        Reassembly().receive_data(b"abc", 2)
