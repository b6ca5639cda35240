"""What can go wrong in a store.

StoreError
├── InvalidOffset          the token is not one that this store could have issued
├── StreamNotFound         no such stream, or it has expired
├── StreamGone             deleted, and kept only for the forks that need its bytes
├── StreamExists           the path is taken by a stream of another configuration
├── StreamClosed           nothing can be appended any more; carries the final tail
├── ContentTypeMismatch    the append's type is not the stream's; carries both
├── SchemaMismatch         the data were checked by another schema than the stream's, or by none
├── SequenceConflict       `Stream-Seq` does not come after the last one
├── ProducerFenced         a newer epoch writes here now; carries it
├── SequenceGap            an earlier append of this producer is missing; carries expected and received
├── InvalidEpochStart      a new epoch must begin at sequence 0
├── InvalidFork            the fork point is not in the source
├── GenerationNotFound     no such generation
├── SessionNotFound        no such session
├── FingerprintMismatch    the same ids were used before for another request
├── GenerationEnded        it reached its terminal event already
├── TooManyGenerations     the holder has as many at once as it may; carries the limit
├── RateLimited            the holder began as many within a minute as it may; carries the limit and the wait
├── OwnerFenced            a newer epoch stands in the database; this owner is finished
├── ItemRefused            the engine refuses this batch for what is in it; sending it again cannot help
├── KeyUnavailable         the bytes are encrypted with a key that is not here, and may be nowhere any more
└── StoreUnavailable       the engine cannot be reached now; sent work may or may not have been done
"""

from __future__ import annotations


class StoreError(Exception):
    """The root of everything that a store raises on purpose."""


class InvalidOffset(StoreError):
    """The token is not an offset: neither `-1`, nor `now`, nor the fixed-width form."""


class StreamNotFound(StoreError):
    """There is no stream with that id."""


class GenerationNotFound(StoreError):
    """There is no generation under that key."""


class SessionNotFound(StoreError):
    """There is no session under that key, or it was deleted."""


class FingerprintMismatch(StoreError):
    """The key is taken by a request with another method, URL or body."""


class GenerationEnded(StoreError):
    """The generation is not in a state that this step may leave."""


class TooManyGenerations(StoreError):
    """The holder has `limit` generations at once already; another one may begin when one of them ends."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"no more than {limit} generations at once")
        self.limit = limit


class RateLimited(StoreError):
    """The holder began `limit` generations within the last minute; another one may begin after `retry_after_seconds`."""

    def __init__(self, limit: int, retry_after_seconds: float) -> None:
        super().__init__(f"no more than {limit} generations in a minute")
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class OwnerFenced(StoreError):
    """The owner's epoch is no longer the one in the database: somebody else ended its generations."""


class ItemRefused(StoreError):
    """The engine refuses the batch because of its content, not because of its own state."""


class KeyUnavailable(StoreError):
    """The bytes are encrypted with a key that this process does not have. Destroying keys is a way to erase."""


class StoreUnavailable(StoreError):
    """The engine is out of reach; whether the last commit happened is unknown until `settle` says so."""


class StreamGone(StoreError):
    """The stream was deleted; forks still read its bytes."""


class StreamExists(StoreError):
    """The path is in use: by a stream of another configuration, or by a deleted one that forks still need."""


class StreamClosed(StoreError):
    """The stream is closed; `final_position` is its tail for ever."""

    def __init__(self, final_position: int) -> None:
        super().__init__(f"the stream is closed at {final_position}")
        self.final_position = final_position


class ContentTypeMismatch(StoreError):
    """The append says one content type, the stream has another."""

    def __init__(self, expected: str, received: str) -> None:
        super().__init__(f"the stream is {expected}, the append {received}")
        self.expected = expected
        self.received = received


class SchemaMismatch(StoreError):
    """The append was checked by another schema than the stream has now, or by none; or a fork asks for another than its
    source's."""


class SequenceConflict(StoreError):
    """The writer's sequence is not greater than the last one accepted (protocol 5.2)."""


class ProducerFenced(StoreError):
    """A newer epoch of this producer has written here; the old one is finished."""

    def __init__(self, current_epoch: int) -> None:
        super().__init__(f"epoch {current_epoch} writes here now")
        self.current_epoch = current_epoch


class SequenceGap(StoreError):
    """An earlier append of the same producer has not arrived."""

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(f"expected sequence {expected}, received {received}")
        self.expected = expected
        self.received = received


class InvalidEpochStart(StoreError):
    """A producer's new epoch begins with a sequence other than 0."""


class InvalidFork(StoreError):
    """The fork position or sub-offset lies beyond the source's data, or inside a message."""
