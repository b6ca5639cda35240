"""The memory store keeps the contract for streams of the open protocol."""

import pytest

pytest.register_assert_rewrite("streamkeep.storage.contract_streams")

from streamkeep.storage import MemoryStore, Retention, Store  # noqa: E402
from streamkeep.storage.contract_streams import StreamContract  # noqa: E402


class TestMemoryStreams(StreamContract):
    def make_store(self, *, retention: Retention = Retention()) -> Store:  # noqa: B008
        return MemoryStore(retention)
