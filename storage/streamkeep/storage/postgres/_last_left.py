"""Streams as this process's appends left them, which need not be looked up for the next ones.

What is known here is only tried: a write that finds the stream with another tail writes nothing, and then the stream is
looked up. So nothing is refused, or called a duplicate, because of what is known here; and whatever becomes of a stream
elsewhere, nobody has to tell.

A stream is known once it was found as it had been left. Where processes write in turns, each looks first: a try that
failed cost a batch what it was to save, so the next ones are put off, the longer the more have failed. The streams of that
batch are known again once they were found as they had been left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from streamkeep.storage._types import Producer, StreamAppend, StreamKey
from streamkeep.storage.rules.appends import Change, StreamState

_MAX_STREAMS = 4096
_MAX_PRODUCERS = 16
_MAX_BATCHES_PUT_OFF = 64


@dataclass(slots=True)
class Known:
    """What is known of a batch's streams, and of their producers by stream and id; and the appends whose streams are not."""

    states: dict[StreamKey, StreamState]
    producers: dict[tuple[int, str], Producer]
    unknown: Sequence[StreamAppend]


@dataclass(slots=True)
class _Left:
    """A stream after a change, and that change's producers, if they are few. `is_ours`: nobody else wrote between it and the
    one before, as far as anybody has seen."""

    state: StreamState
    producers: dict[str, Producer]
    is_ours: bool

    def tells(self, producer: Producer | None) -> bool:
        return self.is_ours and (producer is None or producer.id in self.producers)


class LastLeft:
    """Some of the streams that were written here."""

    def __init__(self) -> None:
        self._streams: dict[StreamKey, _Left] = {}
        self._pause = 0
        self._batches_put_off = 0

    def known(self, appends: Sequence[StreamAppend]) -> Known:
        """What may be tried for a batch; a stream is known for all of its appends, or for none."""
        if self._batches_put_off:
            self._batches_put_off -= 1
            return Known({}, {}, appends)
        pairs = [(append, self._streams.get(append.key)) for append in appends]
        strange = {append.key for append, left in pairs if left is None or not left.tells(append.producer)}
        states: dict[StreamKey, StreamState] = {}
        producers: dict[tuple[int, str], Producer] = {}
        unknown: list[StreamAppend] = []
        for append, left in pairs:
            if left is None or (strange and append.key in strange):
                unknown.append(append)
                continue
            states[append.key] = left.state
            if append.producer is not None:
                producers[left.state.id, append.producer.id] = left.producers[append.producer.id]
        return Known(states, producers, unknown)

    def tried(self, has_worked: bool) -> None:
        """What was known of a batch was right, or was not."""
        self._pause = 0 if has_worked else min(2 * self._pause + 1, _MAX_BATCHES_PUT_OFF)
        self._batches_put_off = self._pause

    def doubt(self, keys: Iterable[StreamKey]) -> None:
        """Of one of these streams something wrong was known, and nobody can tell of which."""
        for key in keys:
            if (left := self._streams.get(key)) is not None:
                left.is_ours = False

    def note(self, key: StreamKey, change: Change) -> None:
        """A change is committed."""
        state = change.state
        producers = change.producers if len(change.producers) <= _MAX_PRODUCERS else {}
        left = self._streams.get(key)
        if left is None:
            if len(self._streams) >= _MAX_STREAMS:
                del self._streams[next(iter(self._streams))]
            self._streams[key] = _Left(state, producers, is_ours=False)
            return
        left.is_ours = left.state.id == state.id and left.state.tail.position == change.position
        left.state, left.producers = state, producers
