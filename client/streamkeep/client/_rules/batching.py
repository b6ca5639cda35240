"""What an idempotent producer has yet to deliver, and what may be sent now (protocol 5.2.1).

Payloads gather in an open batch, which is sealed when it is full, when its oldest payload has waited for long enough, or
when somebody waits for all to be stored. A sealed batch gets the next sequence number of the producer's epoch and may be
sent; several may be under way at once, and then they can arrive out of order. One that the server finds to come too early
waits until all before it are stored, and is sent again.

A producer that may claim its epoch learns from the first answer whether the epoch is free, so its first batch goes alone.
When the server knows a later epoch, or has seen this epoch's first number before, nothing more is sent until all that is
under way is answered; then what was not stored goes on in the next epoch, from number 0.

After a failure nothing more is sent: what follows would leave a gap. Everything not known to be stored is `undelivered`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum, auto

from streamkeep.client._errors import DeliveryFailed


@dataclass(frozen=True, slots=True)
class Batch:
    """Payloads that are stored in one step. `closes` the stream with them, or with none."""

    payloads: tuple[bytes, ...]
    epoch: int
    sequence: int
    closes: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.payloads))


class _State(Enum):
    READY = auto()
    UNDER_WAY = auto()
    EARLY = auto()
    UNKNOWN = auto()
    REFUSED = auto()


@dataclass(slots=True)
class _Entry:
    batch: Batch
    state: _State = _State.READY
    was_first: bool = False


class Outbox:
    """The state of one producer. `now` is monotonic seconds.

    Raises:
        ValueError: a limit or number makes no sense; the message begins with its name.
    """

    def __init__(
        self,
        *,
        epoch: int,
        sequence: int,
        auto_claim: bool,
        max_batch_bytes: int,
        max_batch_items: int,
        linger_seconds: float,
        max_in_flight: int,
    ) -> None:
        for name, number in (("epoch", epoch), ("sequence", sequence)):
            if not 0 <= number < 2**53:
                raise ValueError(f"{name} must be from 0 to 2**53 - 1")
        for name, limit in (
            ("max_batch_bytes", max_batch_bytes),
            ("max_batch_items", max_batch_items),
            ("max_in_flight", max_in_flight),
        ):
            if limit < 1:
                raise ValueError(f"{name} must be 1 or more")
        if linger_seconds < 0:
            raise ValueError("linger_seconds must not be negative")
        self.epoch = epoch
        self.next_sequence = sequence
        self.failure: BaseException | None = None
        self.waiting_bytes = 0
        self._auto_claim = auto_claim
        self._is_claimed = not auto_claim
        self._claims: int | None = None
        self._max_batch_bytes = max_batch_bytes
        self._max_batch_items = max_batch_items
        self._max_in_flight = max_in_flight
        self._linger_seconds = linger_seconds
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._opened_at = 0.0
        self._entries: deque[_Entry] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether everything is stored, or given up."""
        if self.failure is not None:
            return self._in_flight == 0
        return not self._open and not self._entries

    def append(self, payload: bytes, *, now: float) -> bool:
        """Take a payload; whether a batch was begun or sealed by it, so that a sender has something to look at."""
        known = self.next_sequence
        if self._open and self._open_bytes + len(payload) > self._max_batch_bytes:
            self.seal()
        is_first = not self._open
        if is_first:
            self._opened_at = now
        self._open.append(payload)
        self._open_bytes += len(payload)
        self.waiting_bytes += len(payload)
        if self._open_bytes >= self._max_batch_bytes or len(self._open) >= self._max_batch_items:
            self.seal()
        return is_first or self.next_sequence != known

    def seal(self) -> None:
        """Send what has gathered as soon as may be."""
        if self._open:
            self._enter(tuple(self._open))
        self._open = []
        self._open_bytes = 0

    def close(self, payload: bytes | None) -> None:
        """Close the stream behind everything else, in one step with a last payload if there is one."""
        self.seal()
        payloads = () if payload is None else (payload,)
        self.waiting_bytes += sum(map(len, payloads))
        self._enter(payloads, closes=True)

    def seconds_until_due(self, *, now: float) -> float | None:
        """How long the open batch still waits for company; None while there is none."""
        return max(0.0, self._opened_at + self._linger_seconds - now) if self._open else None

    def take(self, *, now: float) -> Batch | None:
        """The next batch to send now, if any. Its outcome is reported by one of the methods below."""
        if self.failure is not None or self._claims is not None:
            return None
        if self.seconds_until_due(now=now) == 0.0:
            self.seal()
        if self._in_flight >= (self._max_in_flight if self._is_claimed else 1):
            return None
        for index, entry in enumerate(self._entries):
            # One that came too early goes again when it is the first that is not stored.
            if entry.state is _State.READY or (entry.state is _State.EARLY and index == 0):
                entry.state = _State.UNDER_WAY
                entry.was_first = index == 0
                return entry.batch
        return None

    def stored(self, batch: Batch, *, is_duplicate: bool = False) -> None:
        """The batch is stored; `is_duplicate` when the server says that it was before it came.

        A producer that claims has new things to say: in an epoch that is not its own yet, that was somebody else's batch.
        """
        if is_duplicate and not self._is_claimed:
            self._claim_after(batch, batch.epoch)
            return
        self._is_claimed = True
        self._entries.remove(self._entry(batch))
        self.waiting_bytes -= batch.size_bytes
        self._claim_when_idle()

    def came_early(self, batch: Batch, error: Exception) -> None:
        """The server misses an earlier number: this producer's own, on its way, or one that it never had."""
        entry = self._entry(batch)
        if entry.was_first:
            # Everything before it had been stored already when it was sent.
            self.failed(batch, error, is_unknown=False)
            return
        entry.state = _State.EARLY
        self._claim_when_idle()

    def fenced(self, batch: Batch, current_epoch: int, error: Exception) -> None:
        """The server knows this epoch, or a later one, from another producer of the same name."""
        if not self._auto_claim:
            self.failed(batch, error, is_unknown=False)
            return
        self._claim_after(batch, current_epoch)

    def failed(self, batch: Batch, error: BaseException, *, is_unknown: bool) -> None:
        """The batch was refused for good, or nobody knows whether it was stored."""
        self._entry(batch).state = _State.UNKNOWN if is_unknown else _State.REFUSED
        self.failure = self.failure or error

    def delivery_error(self) -> DeliveryFailed:
        """What a failed producer did not deliver."""
        batches = [entry.batch for entry in self._entries]
        unknown = 0
        for entry in self._entries:
            if entry.state is not _State.UNKNOWN:
                break
            unknown += len(entry.batch.payloads)
        return DeliveryFailed((*(each for batch in batches for each in batch.payloads), *self._open), unknown=unknown)

    def _enter(self, payloads: tuple[bytes, ...], *, closes: bool = False) -> None:
        self._entries.append(_Entry(Batch(payloads, self.epoch, self.next_sequence, closes)))
        self.next_sequence += 1

    @property
    def _in_flight(self) -> int:
        return sum(entry.state is _State.UNDER_WAY for entry in self._entries)

    def _entry(self, batch: Batch) -> _Entry:
        return next(entry for entry in self._entries if entry.batch is batch)

    def _claim_after(self, batch: Batch, epoch: int) -> None:
        self._entry(batch).state = _State.READY
        self._claims = max(epoch, self.epoch, (self._claims or 0) - 1) + 1
        self._claim_when_idle()

    def _claim_when_idle(self) -> None:
        if self._claims is None or self._in_flight or self.failure is not None:
            return
        self.epoch, self._claims, self._is_claimed = self._claims, None, False
        for sequence, entry in enumerate(self._entries):
            entry.batch = replace(entry.batch, epoch=self.epoch, sequence=sequence)
            entry.state = _State.READY
        self.next_sequence = len(self._entries)
