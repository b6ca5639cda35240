"""What becomes of an append (protocol 5.2, 5.2.1, 4.1): the one decision that every store asks for.

In this order, the first that applies:

    the stream is deleted, or is a generation's         refused
    no body and no close, or text that nobody can keep  refused
    the tuple that closed the stream, or on an open     a duplicate: nothing is stored, and the highest sequence is told
      stream a sequence that was accepted before
    only a close, without a producer, of a closed one   a duplicate: closing twice is no mistake
    the stream is closed                                refused
    a body of another content type                      refused
    a body checked by another schema, or by none        refused
    the producer, by its epoch E and last sequence L:
        unknown, sequence 0                             stored
        unknown, sequence > 0                           a gap, 0 was expected
        epoch < E                                       fenced
        epoch > E, sequence 0                           stored: a new incarnation
        epoch > E, sequence > 0                         a new epoch starts at 0
        epoch = E, sequence = L + 1                     stored
        epoch = E, sequence > L + 1                     a gap, L + 1 was expected
    `Stream-Seq` not after the last one                 refused

A refused append moves no state at all. `Stream-Seq` is of the stream's scope.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from streamkeep.storage._errors import (
    ContentTypeMismatch,
    InvalidEpochStart,
    ItemRefused,
    ProducerFenced,
    SchemaMismatch,
    SequenceConflict,
    SequenceGap,
    StoreError,
    StreamClosed,
    StreamGone,
    StreamNotFound,
)
from streamkeep.storage._types import Appended, Producer, StreamAppend, StreamKey, Tail
from streamkeep.storage.rules import content_types
from streamkeep.storage.rules.texts import is_storable


@dataclass(slots=True)
class StreamState:
    """A stream as an append meets it. `closed_by` is the producer tuple that closed it."""

    id: int
    content_type: str
    tail: Tail
    writer_sequence: str | None = None
    closed_by: Producer | None = None
    is_generation: bool = False
    is_gone: bool = False
    schema_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class Repeated:
    """The append was accepted before; `producer` is its last accepted tuple."""

    producer: Producer | None


def decide(state: StreamState, known: Producer | None, append: StreamAppend) -> StreamState | Repeated:
    """What becomes of one append, given the last tuple accepted from its producer: where the stream stands after it.

    Raises:
        StreamGone, StreamClosed, ContentTypeMismatch, SchemaMismatch, ProducerFenced, InvalidEpochStart, SequenceGap, SequenceConflict,
        ItemRefused: as the table says; nothing is to be stored.
    """
    tail, producer = state.tail, append.producer
    if state.is_gone:
        raise StreamGone(f"{append.key.path} is deleted")
    if state.is_generation:
        raise StreamClosed(tail.position) if tail.is_closed else ItemRefused("only its owner writes a generation")
    if not append.data and not append.is_close:
        raise ItemRefused("there is nothing to append")
    if not is_storable((producer.id if producer else "") + (append.writer_sequence or "")):
        raise ItemRefused("a producer id or sequence that cannot be kept")
    if _is_repeated(state, known, append):
        return Repeated(known if producer is not None else None)
    if tail.is_closed:
        raise StreamClosed(tail.position)
    received = append.content_type if append.data else None
    if received is not None and not content_types.is_same(state.content_type, received):
        raise ContentTypeMismatch(state.content_type, received)
    if append.data and append.schema_id != state.schema_id:
        raise SchemaMismatch(f"{append.key.path} has another schema than the data were checked by")
    if producer is not None:
        _check_turn(known, producer)
    sequence = append.writer_sequence
    if sequence is not None and state.writer_sequence is not None and not _is_after(sequence, state.writer_sequence):
        raise SequenceConflict(f"{sequence!r} does not come after {state.writer_sequence!r}")
    return StreamState(
        state.id,
        state.content_type,
        Tail(tail.position + len(append.data), append.is_close),
        state.writer_sequence if sequence is None else sequence,
        producer if append.is_close else None,
        schema_id=state.schema_id,
    )


def _is_repeated(state: StreamState, known: Producer | None, append: StreamAppend) -> bool:
    producer = append.producer
    if state.tail.is_closed:
        if producer is None:
            return not append.data
        return producer == state.closed_by
    return (
        producer is not None
        and known is not None
        and known.epoch == producer.epoch
        and producer.sequence <= known.sequence
    )


def _check_turn(known: Producer | None, producer: Producer) -> None:
    if known is None:
        expected = 0
    elif producer.epoch < known.epoch:
        raise ProducerFenced(known.epoch)
    elif producer.epoch > known.epoch:
        if producer.sequence:
            raise InvalidEpochStart(f"epoch {producer.epoch} begins at {producer.sequence}")
        return
    else:
        expected = known.sequence + 1
    if producer.sequence != expected:
        raise SequenceGap(expected, producer.sequence)


def _is_after(sequence: str, last: str) -> bool:
    return sequence.encode() > last.encode()


@dataclass(slots=True)
class Change:
    """What a batch does to one stream: bytes from `position` on, and where stream and producers stand afterwards."""

    position: int
    state: StreamState
    pieces: list[bytes] = field(default_factory=list)
    producers: dict[str, Producer] = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)


def decide_batch(
    appends: Iterable[StreamAppend],
    streams: Mapping[StreamKey, StreamState],
    producers: Mapping[tuple[int, str], Producer],
) -> tuple[list[Appended | StoreError], list[Change]]:
    """What becomes of each append of a batch, each meeting what the ones before it left; and what is to be stored.

    `producers` are the last accepted tuples by stream and producer id.
    """
    results: list[Appended | StoreError] = []
    changes: dict[int, Change] = {}
    for append in appends:
        before = streams.get(append.key)
        if before is None:
            results.append(StreamNotFound(f"no stream {append.key.path!r}"))
            continue
        change = changes.get(before.id) or Change(before.tail.position, before)
        known = None
        if append.producer is not None:
            name = append.producer.id
            known = change.producers.get(name) or producers.get((before.id, name))
        position = change.state.tail.position
        try:
            decision = decide(change.state, known, append)
        except StoreError as exc:
            results.append(exc)
            continue
        if isinstance(decision, Repeated):
            results.append(
                Appended(before.id, position, change.state.tail, is_duplicate=True, producer=decision.producer)
            )
            continue
        changes[before.id] = change
        change.state = decision
        if append.data:
            change.pieces.append(append.data)
        if append.producer is not None:
            change.producers[append.producer.id] = append.producer
        results.append(Appended(before.id, position, decision.tail, producer=append.producer))
    return results, list(changes.values())
