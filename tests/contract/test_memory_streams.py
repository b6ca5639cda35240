"""The memory store keeps the contract for streams of the open protocol."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from streamkeep.storage import Expiry, MemoryStore, Retention, Store, StreamConfig, StreamNotFound
from streamkeep.storage.contract import raised
from streamkeep.storage.contract_streams import StreamContract, at, made, one, write

END = datetime(2030, 1, 1, tzinfo=UTC)


class LastMoments(MemoryStore):
    """Its clock shows `END`, but first the microsecond before that, as often as there are `moments_left`."""

    moments_left = 0

    def _now(self) -> datetime:
        self.moments_left -= 1
        return END if self.moments_left < 0 else END - timedelta(microseconds=1)


class TestMemoryStreams(StreamContract):
    def make_store(self, *, retention: Retention = Retention()) -> Store:  # noqa: B008
        return MemoryStore(retention)


async def test_a_stream_that_expires_while_it_is_asked_for_is_there_or_is_not() -> None:
    """It never counts as gone, which it does only while forks need it."""
    store = LastMoments()
    await made(store, "a", b"x", StreamConfig("text/plain", Expiry(expires_at=END)))
    for call in (lambda: store.stream(at("a")), lambda: one(store, write("a", b"y"))):
        store.moments_left = 1
        await call()
        await raised(StreamNotFound, call())
