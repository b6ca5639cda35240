"""Behind a transaction-mode pooler, where every transaction meets another session that remembers nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from streamkeep.storage import Append, Retention, Store
from streamkeep.storage.contract import Ears, StoreContract, ending, key, read_on, running
from streamkeep.storage.embedded import EmbeddedPostgres
from streamkeep.storage.postgres import PostgresStore
from tests.database import Databases
from tests.postgres import Pooler, opened, until


@pytest.fixture(scope="module")
def trusting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Databases on a server that asks for no password: the pooler of the tests knows none."""
    with EmbeddedPostgres.start(tmp_path_factory.mktemp("trusting")) as server:
        databases = Databases(server.dsn)
        with databases.template():
            yield databases


@pytest.fixture
def database_url(trusting_server: Databases) -> Iterator[str]:
    with trusting_server.fresh() as url:
        yield url


@pytest.fixture
async def pooler(database_url: str) -> AsyncIterator[Pooler]:
    async with Pooler.to(database_url) as pooler:
        yield pooler


class _BehindPooler(StoreContract):
    def __init__(self, pooled_url: str, direct_url: str) -> None:
        self._pooled_url = pooled_url
        self._direct_url = direct_url

    def make_store(self, *, retention: Retention = Retention()) -> Store:  # noqa: B008
        return PostgresStore(self._pooled_url, direct_dsn=self._direct_url, retention=retention, merge_after_seconds=0)


@pytest.mark.parametrize(
    "claim",
    [
        StoreContract.test_the_signing_key_is_32_bytes_and_stays_the_same,
        StoreContract.test_of_many_recoverers_one_ends_the_generations,
        StoreContract.test_every_write_of_a_fenced_owner_is_refused_and_writes_nothing,
        StoreContract.test_of_fifty_concurrent_claims_of_a_key_one_is_new,
        StoreContract.test_of_many_claims_of_a_refused_generation_one_is_new,
        StoreContract.test_headers_come_back_whatever_they_hold,
        StoreContract.test_a_large_append_is_read_in_bounded_pieces,
        StoreContract.test_one_append_at_a_wrong_position_keeps_the_whole_batch_out,
        StoreContract.test_the_last_bytes_and_the_end_go_into_one_commit,
        StoreContract.test_a_cancel_request_flags_the_generation_and_wakes_its_owner,
        StoreContract.test_concurrent_sweeps_share_the_work,
        StoreContract.test_merging_changes_no_byte_at_any_offset,
    ],
)
async def test_the_contract_holds_behind_a_pooler(
    database_url: str, pooler: Pooler, claim: Callable[[StoreContract], Awaitable[None]]
) -> None:
    await claim(_BehindPooler(pooler.url, database_url))
    assert pooler.transactions > 3


async def test_many_streams_grow_through_a_few_sessions(database_url: str, pooler: Pooler) -> None:
    async with opened(pooler.url, direct_dsn=database_url) as store:
        owner = await store.register_owner()
        generations = await asyncio.gather(*(running(store, owner, key(f"r{i}")) for i in range(20)))
        for position in range(5):
            await store.commit(owner, [Append(row.data_stream, position, b"x") for row in generations], [])
        await store.settle(owner, [row.data_stream for row in generations])
        await store.commit(owner, [], [ending(row, 5) for row in generations])
        for row in generations:
            assert await read_on(store, row.data_stream) == b"xxxxx"


async def test_notifications_go_the_direct_way(database_url: str, pooler: Pooler) -> None:
    ears = Ears()
    async with (
        opened(pooler.url, direct_dsn=database_url) as one,
        opened(pooler.url, direct_dsn=database_url, ears=ears) as two,
    ):
        generation = await running(one, await one.register_owner())
        await until(lambda: ears.has_heard_of(generation.data_stream))
        await one.request_cancel(generation.key)
        await until(lambda: ears.cancelled == [generation.id])
        assert await two.generation(generation.key) is not None
