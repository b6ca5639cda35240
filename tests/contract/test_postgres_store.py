"""The Postgres store keeps the contract."""

import pytest

from streamkeep.storage import Retention, Store
from streamkeep.storage.contract import StoreContract
from streamkeep.storage.postgres import PostgresStore


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _database(self, database_url: str) -> None:
        self._url = database_url

    def make_store(self, *, retention: Retention = Retention()) -> Store:  # noqa: B008
        return PostgresStore(self._url, retention=retention, merge_after_seconds=0)
