"""The rules of streams, by table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from streamkeep.storage import (
    ContentTypeMismatch,
    Expiry,
    ForkPoint,
    InvalidEpochStart,
    InvalidFork,
    ItemRefused,
    Producer,
    ProducerFenced,
    SequenceConflict,
    SequenceGap,
    StoreError,
    StreamAppend,
    StreamClosed,
    StreamGone,
    StreamKey,
    Tail,
)
from streamkeep.storage.rules import content_types
from streamkeep.storage.rules.appends import Repeated, StreamState, decide
from streamkeep.storage.rules.expiry import first_end, is_over, moved_end, slack_seconds
from streamkeep.storage.rules.forks import resolve
from streamkeep.storage.rules.texts import is_storable

KEY = StreamKey("default", "a")
OPEN = StreamState(1, "text/plain", Tail(10, False))
CLOSED = StreamState(1, "text/plain", Tail(10, True))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def append(
    data: bytes = b"x",
    *,
    producer: Producer | None = None,
    sequence: str | None = None,
    is_close: bool = False,
    content_type: str | None = "text/plain",
) -> StreamAppend:
    return StreamAppend(KEY, data, content_type, is_close, producer, sequence)


@pytest.mark.parametrize(
    ("known", "turn", "outcome"),
    [
        (None, (0, 0), "stored"),
        (None, (9, 0), "stored"),
        (None, (0, 1), SequenceGap(0, 1)),
        ((3, 5), (2, 6), ProducerFenced(3)),
        ((3, 5), (2, 0), ProducerFenced(3)),
        ((3, 5), (4, 0), "stored"),
        ((3, 5), (9, 0), "stored"),
        ((3, 5), (4, 6), InvalidEpochStart()),
        ((3, 5), (3, 0), "repeated"),
        ((3, 5), (3, 5), "repeated"),
        ((3, 5), (3, 6), "stored"),
        ((3, 5), (3, 7), SequenceGap(6, 7)),
        ((3, 2**53 - 1), (3, 2**53 - 1), "repeated"),
    ],
)
def test_a_producers_turn(known: tuple[int, int] | None, turn: tuple[int, int], outcome: str | StoreError) -> None:
    last = Producer("p", *known) if known else None
    asked = append(producer=Producer("p", *turn))
    if isinstance(outcome, StoreError):
        with pytest.raises(type(outcome)) as raised:
            decide(OPEN, last, asked)
        told = {name: value for name, value in vars(raised.value).items() if name != "args"}
        assert told == vars(outcome)
    elif outcome == "repeated":
        assert decide(OPEN, last, asked) == Repeated(last)
    else:
        assert isinstance(decide(OPEN, last, asked), StreamState)


@pytest.mark.parametrize(
    ("state", "asked", "error"),
    [
        (StreamState(1, "a/b", Tail(1, True), is_gone=True), append(is_close=True), StreamGone),
        (StreamState(1, "a/b", Tail(1, True), is_generation=True), append(), StreamClosed),
        (StreamState(1, "a/b", Tail(1, True), is_generation=True), append(b"", is_close=True), StreamClosed),
        (StreamState(1, "a/b", Tail(1, False), is_generation=True), append(), ItemRefused),
        (OPEN, append(b""), ItemRefused),
        (OPEN, append(producer=Producer("nul\0", 0, 0)), ItemRefused),
        (CLOSED, append(content_type="a/b"), StreamClosed),
        (CLOSED, append(b"", is_close=True, producer=Producer("p", 0, 0)), StreamClosed),
        (OPEN, append(content_type="a/b", producer=Producer("p", 0, 7)), ContentTypeMismatch),
        (StreamState(1, "a/b", Tail(1, False), "5"), append(content_type="a/b", sequence="5"), SequenceConflict),
        (
            StreamState(1, "a/b", Tail(1, False), "5"),
            append(content_type="a/b", sequence="5", producer=Producer("p", 0, 1)),
            SequenceGap,
        ),
    ],
)
def test_what_is_refused_and_why_first(state: StreamState, asked: StreamAppend, error: type[StoreError]) -> None:
    with pytest.raises(error):
        decide(state, None, asked)


def test_an_accepted_close_remembers_its_tuple() -> None:
    closing = Producer("p", 0, 0)
    decision = decide(OPEN, None, append(b"xyz", producer=closing, sequence="7", is_close=True))
    assert decision == StreamState(1, "text/plain", Tail(13, True), "7", closing)
    assert decide(decision, closing, append(b"other", producer=closing)) == Repeated(closing)


def test_a_close_ignores_the_content_type_and_may_be_repeated() -> None:
    close = append(b"", is_close=True, content_type="a/b")
    decision = decide(OPEN, None, close)
    assert isinstance(decision, StreamState)
    assert decide(decision, None, close) == Repeated(None)


@pytest.mark.parametrize(
    ("ttl", "slack"), [(0, 0), (1, 0), (9, 0), (10, 1), (50, 5), (100, 10), (86400, 10), (10**30, 10)]
)
def test_slack_is_a_tenth_of_the_ttl_within_bounds(ttl: int, slack: float) -> None:
    assert slack_seconds(ttl) == slack


@pytest.mark.parametrize(
    ("ttl", "left_seconds", "moved_to_seconds"),
    [
        (None, 5, None),
        (1, 1, None),
        (1, 0.999, 1),
        (50, 55, None),
        (50, 50, None),
        (50, 49.9, 55),
        (3600, 3600, None),
        (3600, 3599, 3610),
    ],
)
def test_a_touch_moves_the_end_only_when_it_must(
    ttl: int | None, left_seconds: float, moved_to_seconds: float | None
) -> None:
    moved = moved_end(ttl, NOW + timedelta(seconds=left_seconds), NOW)
    assert moved == (None if moved_to_seconds is None else NOW + timedelta(seconds=moved_to_seconds))


def test_the_first_end_and_when_it_is_over() -> None:
    assert first_end(Expiry(), NOW) is None
    assert first_end(Expiry(expires_at=NOW), NOW) == NOW
    assert first_end(Expiry(10), NOW) == NOW + timedelta(seconds=11)
    far = first_end(Expiry(10**30), NOW)
    assert far is not None
    assert far > NOW
    assert not is_over(None, NOW)
    assert is_over(NOW, NOW)
    assert not is_over(NOW, NOW - timedelta(microseconds=1))


def resolved(point: ForkPoint, source: bytes, *, is_message_stream: bool) -> int:
    search = resolve(point, tail=len(source), is_message_stream=is_message_stream)
    wanted: bytes | None = None
    while True:
        try:
            position, size = next(search) if wanted is None else search.send(wanted)
        except StopIteration as end:
            return int(end.value)
        # Fewer bytes than were asked for, as a store may give.
        wanted = source[position : position + min(size, 3)]


@pytest.mark.parametrize(
    ("position", "sub_offset", "expected"),
    [
        (None, None, 12),
        (None, 0, 12),
        (0, None, 0),
        (0, 1, 2),
        (0, 2, 9),
        (0, 3, 12),
        (2, 1, 9),
        (9, 1, 12),
        (12, 0, 12),
        (0, 4, None),
        (12, 1, None),
        (None, 1, None),
        (1, 0, None),
        (10, 1, None),
        (13, 0, None),
        (-1, 0, None),
        (0, -1, None),
    ],
)
def test_fork_points_between_messages(position: int | None, sub_offset: int | None, expected: int | None) -> None:
    source = b'1\x1e[{"a"}\x1e22\x1e'
    point = ForkPoint(KEY, position, sub_offset)
    if expected is None:
        with pytest.raises(InvalidFork):
            resolved(point, source, is_message_stream=True)
    else:
        assert resolved(point, source, is_message_stream=True) == expected


@pytest.mark.parametrize(
    ("position", "sub_offset", "expected"),
    [(None, None, 5), (0, 5, 5), (2, 2, 4), (5, None, 5), (0, 6, None), (None, 1, None), (6, None, None)],
)
def test_fork_points_between_bytes(position: int | None, sub_offset: int | None, expected: int | None) -> None:
    point = ForkPoint(KEY, position, sub_offset)
    if expected is None:
        with pytest.raises(InvalidFork):
            resolved(point, b"01234", is_message_stream=False)
    else:
        assert resolved(point, b"01234", is_message_stream=False) == expected


def test_content_types_are_compared_by_media_type() -> None:
    assert content_types.is_same("Text/Plain; charset=utf-8", "text/plain")
    assert not content_types.is_same("text/plain", "text/html")
    assert content_types.is_json(" APPLICATION/json ;x=1")
    assert not content_types.is_json("application/json-seq")


def test_text_that_engines_can_keep() -> None:
    assert is_storable("")
    assert is_storable("\u2603 \U0001f600")
    assert not is_storable("a\0")
    assert not is_storable("\udce9")
