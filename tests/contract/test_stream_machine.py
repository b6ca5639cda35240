"""Both stores against a simple model: whatever is done in whatever order, the answers and the bytes are the model's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from streamkeep.storage import (
    ContentTypeMismatch,
    Created,
    Expiry,
    ForkPoint,
    InvalidEpochStart,
    InvalidFork,
    MemoryStore,
    Producer,
    ProducerFenced,
    SequenceConflict,
    SequenceGap,
    Store,
    StoreError,
    StreamAppend,
    StreamClosed,
    StreamConfig,
    StreamExists,
    StreamGone,
    StreamInfo,
    StreamKey,
    StreamNotFound,
    Tail,
)
from streamkeep.storage.postgres import PostgresStore

T = TypeVar("T")

TYPES = ["text/plain", "application/json"]
paths = st.sampled_from(["a", "a", "b", "b", "c/d", "c/e"])
pieces = st.lists(st.sampled_from([b"1", b'"two"', b"[3,3]", b"\xff\x00"]), min_size=1, max_size=3)
tenants = itertools.count()


@dataclass(eq=False)
class Model:
    """A stream as it should be."""

    content_type: str
    data: bytes = b""
    is_closed: bool = False
    is_gone: bool = False
    asked: tuple[object, ...] = ()
    source: Model | None = None
    forks: set[Model] = field(default_factory=set)
    producers: dict[str, tuple[int, int]] = field(default_factory=dict)
    closed_by: tuple[str, int, int] | None = None
    sequence: str = ""

    def stored(self, messages: list[bytes]) -> bytes:
        return b"".join(message + b"\x1e" * (self.content_type == "application/json") for message in messages)

    def fork_position(self, position: int | None, sub_offset: int | None) -> int | None:
        at, left = len(self.data) if position is None else position, sub_offset or 0
        if at > len(self.data):
            return None
        if self.content_type == "text/plain":
            return at + left if at + left <= len(self.data) else None
        ends = [0, *(index + 1 for index, byte in enumerate(self.data) if byte == 0x1E)]
        later = [end for end in ends if end >= at]
        return later[left] if at in ends and left < len(later) else None

    def refusal(self, append: StreamAppend) -> type[StoreError] | None:
        """The error that an append meets; none for a duplicate."""
        if self.is_gone:
            return StreamGone
        if self.is_duplicate(append):
            return None
        if self.is_closed:
            return StreamClosed
        if append.data and append.content_type not in (None, self.content_type):
            return ContentTypeMismatch
        if append.producer is not None:
            number, known = append.producer, self.producers.get(append.producer.id)
            if known is not None and number.epoch < known[0]:
                return ProducerFenced
            if known is not None and number.epoch > known[0] and number.sequence:
                return InvalidEpochStart
            expected = known[1] + 1 if known is not None and number.epoch == known[0] else 0
            if number.sequence != expected:
                return SequenceGap
        return SequenceConflict if (append.writer_sequence or "~") <= self.sequence else None

    def is_duplicate(self, append: StreamAppend) -> bool:
        number = append.producer
        if self.is_closed:
            return (number.id, number.epoch, number.sequence) == self.closed_by if number else not append.data
        known = self.producers.get(number.id) if number else None
        return number is not None and known is not None and known[0] == number.epoch and number.sequence <= known[1]

    def append(self, append: StreamAppend) -> None:
        self.data += append.data
        self.sequence = append.writer_sequence or self.sequence
        number = append.producer
        if number:
            self.producers[number.id] = number.epoch, number.sequence
        if append.is_close:
            self.is_closed = True
            self.closed_by = (number.id, number.epoch, number.sequence) if number else None


class Machine(RuleBasedStateMachine):
    def __init__(self, runner: asyncio.Runner, store: Store) -> None:
        super().__init__()
        self.runner = runner
        self.store = store
        self.tenant = f"t{next(tenants)}"
        self.streams: dict[str, Model] = {}

    def run(self, call: Awaitable[T]) -> T | StoreError:
        async def outcome() -> T | StoreError:
            try:
                return await call
            except StoreError as exc:
                return exc

        return self.runner.run(outcome())

    def key(self, path: str) -> StreamKey:
        return StreamKey(self.tenant, path)

    def expect_created(self, path: str, model: Model, config: StreamConfig, answer: Created | StoreError) -> None:
        """Compare a creation's answer; a new stream is the model's from now on."""
        found = self.streams.get(path)
        if found is not None and (found.is_gone or (*found.asked, found.is_closed) != (*model.asked, model.is_closed)):
            assert isinstance(answer, StreamExists), answer
            return
        assert isinstance(answer, Created), answer
        assert answer.is_new == (found is None)
        expected = found or model
        assert answer.stream.tail == Tail(len(expected.data), expected.is_closed)
        assert answer.stream.content_type == expected.content_type
        if found is None:
            self.streams[path] = model
            if model.source is not None:
                model.source.forks.add(model)

    @initialize()
    def begin(self) -> None:
        for path, content_type in zip("ab", TYPES, strict=True):
            self.create(path, content_type, [b"1", b"22"], False)

    @rule(path=paths, content_type=st.sampled_from(TYPES), messages=pieces, is_closed=st.booleans())
    def create(self, path: str, content_type: str, messages: list[bytes], is_closed: bool) -> None:
        model = Model(content_type, is_closed=is_closed, asked=(content_type,))
        model.data = model.stored(messages)
        config = StreamConfig(content_type, is_closed=is_closed)
        self.expect_created(path, model, config, self.run(self.store.create_stream(self.key(path), config, model.data)))

    @rule(path=paths, content_type=st.sampled_from(TYPES))
    def create_expired(self, path: str, content_type: str) -> None:
        config = StreamConfig(content_type, Expiry(expires_at=datetime(2000, 1, 1, tzinfo=UTC)))
        answer = self.run(self.store.create_stream(self.key(path), config, b"old"))
        if path in self.streams:
            assert isinstance(answer, StreamExists), answer
        else:
            assert isinstance(answer, Created), answer

    @rule(path=paths, other=paths)
    def expire_under_a_fork(self, path: str, other: str) -> None:
        if path in self.streams or other in self.streams or path == other:
            return
        soon = Expiry(expires_at=datetime.now(UTC) + timedelta(milliseconds=30))
        self.run(self.store.create_stream(self.key(path), StreamConfig("text/plain", soon), b"short life"))
        config = StreamConfig(expiry=Expiry(3600), fork=ForkPoint(self.key(path)))
        answer = self.run(self.store.create_stream(self.key(other), config))
        while isinstance(self.run(self.store.stream(self.key(path))), StreamInfo):
            pass
        if isinstance(answer, Created):
            source = Model("text/plain", b"short life", is_gone=True)
            self.streams[path] = source
            self.streams[other] = Model("text/plain", b"short life", source=source, asked=("with a TTL",))
            source.forks.add(self.streams[other])

    @rule(
        path=paths,
        source=paths,
        position=st.none() | st.integers(0, 30),
        sub_offset=st.none() | st.integers(0, 4),
        messages=pieces,
        is_closed=st.booleans(),
    )
    def fork(
        self,
        path: str,
        source: str,
        position: int | None,
        sub_offset: int | None,
        messages: list[bytes],
        is_closed: bool,
    ) -> None:
        if path in self.streams:
            return
        origin = self.streams.get(source)
        config = StreamConfig(is_closed=is_closed, fork=ForkPoint(self.key(source), position, sub_offset))
        data = origin.stored(messages) if origin is not None else b""
        answer = self.run(self.store.create_stream(self.key(path), config, data))
        if origin is None:
            assert isinstance(answer, StreamNotFound), answer
        elif origin.is_gone:
            assert isinstance(answer, StreamExists), answer
        elif (at := origin.fork_position(position, sub_offset)) is None:
            assert isinstance(answer, InvalidFork), answer
        else:
            model = Model(origin.content_type, origin.data[:at] + data, is_closed, asked=(source, position, sub_offset))
            model.source = origin
            self.expect_created(path, model, config, answer)

    @rule(
        path=paths,
        content_type=st.sampled_from([None, None, *TYPES]),
        messages=pieces,
        turn=st.none() | st.tuples(st.sampled_from([0, 0, 0, 1, -1]), st.sampled_from([1, 1, 1, 0, 2])),
        sequence=st.sampled_from([None, None, "1", "10", "2", "9"]),
        is_close=st.sampled_from([False, False, False, True]),
        repeats=st.integers(1, 2),
    )
    def append(
        self,
        path: str,
        content_type: str | None,
        messages: list[bytes],
        turn: tuple[int, int] | None,
        sequence: str | None,
        is_close: bool,
        repeats: int,
    ) -> None:
        """`turn` is how far from its last epoch and sequence the producer writes."""
        model = self.streams.get(path)
        producer = None
        if turn is not None:
            epoch, last = (model.producers.get("p") if model else None) or (1, -1)
            producer = Producer("p", max(0, epoch + turn[0]), max(0, (last if turn[0] == 0 else -1) + turn[1]))
        data = (model or Model(TYPES[0])).stored(messages)
        if is_close and repeats > 1:
            data = b""  # Nothing but a close, and once more.
        append = StreamAppend(self.key(path), data, content_type, is_close, producer, sequence)
        answers = self.run(self.store.append([append] * repeats))
        assert not isinstance(answers, StoreError), answers
        for answer in answers:
            if model is None:
                assert isinstance(answer, StreamNotFound), answer
            elif (refusal := model.refusal(append)) is not None:
                assert type(answer) is refusal
            else:
                assert not isinstance(answer, StoreError), answer
                is_duplicate = model.is_duplicate(append)
                assert (answer.position, answer.is_duplicate) == (len(model.data), is_duplicate)
                if not is_duplicate:
                    model.append(append)
                assert answer.tail == Tail(len(model.data), model.is_closed)

    @rule(path=paths)
    def delete(self, path: str) -> None:
        answer, model = self.run(self.store.delete_stream(self.key(path))), self.streams.get(path)
        if model is None:
            assert isinstance(answer, StreamNotFound), answer
        elif model.is_gone:
            assert isinstance(answer, StreamGone), answer
        else:
            assert answer is None
            model.is_gone = True
            while model is not None and model.is_gone and not model.forks:
                self.streams = {path: other for path, other in self.streams.items() if other is not model}
                if model.source is not None:
                    model.source.forks.discard(model)
                model = model.source

    @rule(path=paths, position=st.integers(0, 60), max_bytes=st.integers(1, 40))
    def read(self, path: str, position: int, max_bytes: int) -> None:
        info, model = self.run(self.store.stream(self.key(path))), self.streams.get(path)
        if model is None:
            assert isinstance(info, StreamNotFound), info
        elif model.is_gone:
            assert isinstance(info, StreamGone), info
        else:
            assert isinstance(info, StreamInfo), info
            answer = self.run(self.store.read(info.id, position, max_bytes))
            assert not isinstance(answer, StoreError), answer
            assert answer.data == model.data[position : position + max_bytes]
            assert answer.tail == info.tail == Tail(len(model.data), model.is_closed)

    @rule()
    def tidy_up(self) -> None:
        self.run(self.store.sweep())
        self.run(self.store.merge())

    def teardown(self) -> None:
        listed = self.run(self.store.list_streams(self.tenant))
        assert not isinstance(listed, StoreError), listed
        assert [info.key.path for info in listed] == sorted(p for p, model in self.streams.items() if not model.is_gone)
        for info in listed:
            answer = self.run(self.store.read(info.id, 0, 10_000))
            assert not isinstance(answer, StoreError), answer
            assert answer.data == self.streams[info.key.path].data


def run_machine(store: Store, *, examples: int) -> None:
    with asyncio.Runner() as runner:
        runner.run(store.open())
        try:
            run_state_machine_as_test(
                lambda: Machine(runner, store),  # type: ignore[arg-type]  # Any factory will do.
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=40,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(store.close())


def test_the_memory_store_is_like_the_model() -> None:
    run_machine(MemoryStore(), examples=100)


def test_the_postgres_store_is_like_the_model(database_url: str) -> None:
    run_machine(PostgresStore(database_url, merge_after_seconds=0), examples=120)
