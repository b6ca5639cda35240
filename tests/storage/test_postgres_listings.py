"""Listings over many rows: a page looks at so many of them, whatever is wanted."""

from __future__ import annotations

from streamkeep.storage import DEFAULT_TENANT, GenerationKey, State, Wanted
from tests.postgres import connected, opened

_MANY = """
insert into streamkeep.generations
    (tenant, session_id, request_id, owner_id, owner_epoch, data_stream, control_stream, state, ended_at)
select case when n % 10 = 0 then 'other' else 'default' end, 'chat-' || n % 4000, 'r' || n, 1, 1, 0, 0,
       case when n = 5 then 'error' else 'done' end, clock_timestamp()
from generate_series(1, 12000) as n
"""


async def test_a_needle_is_found_in_pages_that_each_look_at_few_rows(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as plain:
        await plain.execute(_MANY)
        wanted = Wanted(DEFAULT_TENANT, states=frozenset({State.ERROR}))
        found: list[str] = []
        pages, before = 0, None
        while True:
            page = await store.list_generations(wanted, before=before)
            pages += 1
            found += [row.key.request_id for row in page.rows]
            before = page.next_before
            if before is None:
                break
        assert (found, pages) == (["r5"], 3)


async def test_each_session_is_listed_once_over_all_pages(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as plain:
        await plain.execute(_MANY)
        seen: list[str] = []
        before = None
        while True:
            page = await store.list_sessions(Wanted(), before=before, limit=500)
            seen += [f"{row.tenant}/{row.session_id}" for row in page.rows]
            assert all(row.generations == 3 for row in page.rows)
            before = page.next_before
            if before is None:
                break
        assert len(seen) == len(set(seen)) == 4000


async def test_pages_walk_an_index(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as plain:
        await plain.execute(_MANY)
        await store.list_generations(Wanted("other"), limit=10)
        plan = await plain.fetch(
            "explain select * from (select * from streamkeep.generations where tenant = 'other' and id > 0 and id < 9000"
            " order by id desc limit 5000) as looked_at limit 10"
        )
        assert "generations_by_tenant" in "\n".join(row[0] for row in plan)


async def test_one_generation_is_not_found_by_reading_all_of_its_tenant(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as plain:
        owner = await store.register_owner()
        await store.claim(owner, GenerationKey("default", "s", "r"), None)
        plan = await plain.fetch(
            "explain select * from streamkeep.generations"
            " where tenant = 'default' and session_id = 's' and request_id = 'r'"
        )
        assert "generations_key" in "\n".join(row[0] for row in plan)
