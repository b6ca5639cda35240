"""The memory store keeps the contract for streams of the open protocol."""

from streamkeep.storage import MemoryStore, Retention, Store
from streamkeep.storage.contract_streams import StreamContract


class TestMemoryStreams(StreamContract):
    def make_store(self, *, retention: Retention = Retention()) -> Store:  # noqa: B008
        return MemoryStore(retention)
