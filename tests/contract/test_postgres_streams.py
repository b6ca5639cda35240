"""The Postgres store keeps the contract for streams of the open protocol."""

import pytest

from streamkeep.storage import Retention, Store
from streamkeep.storage.contract_streams import StreamContract
from streamkeep.storage.postgres import PostgresStore


class TestPostgresStreams(StreamContract):
    @pytest.fixture(autouse=True)
    def _database(self, database_url: str) -> None:
        self._url = database_url

    def make_store(self, *, retention: Retention = Retention()) -> Store:  # noqa: B008
        return PostgresStore(self._url, retention=retention, merge_after_seconds=0)
