"""The memory store keeps the contract."""

from streamkeep.storage import MemoryStore, Retention, Store
from streamkeep.storage.contract import StoreContract


class TestMemoryStore(StoreContract):
    def make_store(self, *, retention: Retention = Retention()) -> Store:  # noqa: B008
        return MemoryStore(retention)
