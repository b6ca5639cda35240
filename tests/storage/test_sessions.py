"""The store's part of session records, held by every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from streamkeep.storage import (
    MAX_AGENTS_BYTES,
    MAX_SESSION_NAME_LENGTH,
    DueSession,
    Erasure,
    ItemRefused,
    OwnerFenced,
    SessionKey,
    SessionNotFound,
    SessionRecord,
    SessionStore,
    Store,
)

KEY = SessionKey("acme", "s1")
AGENTS = b'[{"id":"a","headers":{"authorization":"Bearer secret"}}]'


@pytest.fixture
def sessions(store: Store) -> SessionStore:
    return store.sessions


async def made(sessions: SessionStore, id: str = "s1", tenant: str = "acme", name: str | None = None) -> SessionRecord:
    return (await sessions.create(SessionKey(tenant, id), name=name))[0]


async def test_a_session_is_found_as_it_was_made(sessions: SessionStore) -> None:
    with pytest.raises(SessionNotFound):
        await sessions.session(KEY)
    session, is_new = await sessions.create(KEY, name="Caf\xe9", agents=AGENTS)
    assert is_new
    assert (session.key, session.name) == (KEY, "Caf\xe9")
    assert session.updated_at == session.created_at
    assert await sessions.session(KEY) == session
    assert await sessions.agents(KEY) == AGENTS
    assert b"secret".decode() not in repr(session)


async def test_a_session_is_made_once_and_found_as_it_is(sessions: SessionStore) -> None:
    results = await asyncio.gather(*(sessions.create(KEY, name=f"n{i}", agents=b"%d" % i) for i in range(8)))
    assert [is_new for _, is_new in results].count(True) == 1
    assert len({session for session, _ in results}) == 1
    ((session, _),) = [result for result in results if result[1]]
    assert await sessions.agents(KEY) == (session.name or "")[1:].encode()
    other, is_new = await sessions.create(SessionKey("other", "s1"))
    assert is_new
    assert other.number > session.number


async def test_an_id_or_a_name_that_cannot_be_kept_is_refused(sessions: SessionStore) -> None:
    for id in ("", "nul\0", "half \udc80"):
        with pytest.raises(ItemRefused):
            await sessions.create(SessionKey("acme", id))
    session = await made(sessions, name="old")
    for name in ("nul\0", "half \udc80", "x" * (MAX_SESSION_NAME_LENGTH + 1)):
        with pytest.raises(ItemRefused):
            await sessions.create(SessionKey("acme", "s2"), name=name)
        with pytest.raises(ItemRefused):
            await sessions.rename(KEY, name)
    assert (await sessions.page(None)).rows == [session]


async def test_a_session_is_renamed_and_loses_its_name(sessions: SessionStore) -> None:
    session = await made(sessions)
    longest = "\N{SNOWMAN}" * MAX_SESSION_NAME_LENGTH
    renamed = await sessions.rename(KEY, longest)
    assert renamed == replace(session, name=longest, updated_at=renamed.updated_at)
    assert renamed.updated_at > session.updated_at
    assert (await sessions.rename(KEY, None)).name is None
    with pytest.raises(SessionNotFound):
        await sessions.rename(SessionKey("other", "s1"), "x")


async def test_agents_change_one_after_the_other_and_none_is_lost(sessions: SessionStore) -> None:
    await made(sessions)
    assert await sessions.agents(KEY) == b""
    results = await asyncio.gather(*(sessions.change_agents(KEY, lambda old: old + b"x") for _ in range(8)))
    assert sorted(results) == [b"x" * n for n in range(1, 9)]
    assert await sessions.agents(KEY) == b"x" * 8


async def test_a_change_of_agents_that_fails_changes_nothing(sessions: SessionStore) -> None:
    await sessions.create(KEY, agents=AGENTS)

    def fail(_: bytes) -> bytes:
        raise LookupError("no such agent")

    with pytest.raises(LookupError):
        await sessions.change_agents(KEY, fail)
    with pytest.raises(ItemRefused):
        await sessions.change_agents(KEY, lambda _: bytes(MAX_AGENTS_BYTES + 1))
    with pytest.raises(ItemRefused):
        await sessions.create(SessionKey("acme", "s2"), agents=bytes(MAX_AGENTS_BYTES + 1))
    assert await sessions.agents(KEY) == AGENTS
    assert len(await sessions.change_agents(KEY, lambda _: bytes(MAX_AGENTS_BYTES))) == MAX_AGENTS_BYTES


async def test_sessions_are_listed_page_by_page_newest_first(sessions: SessionStore) -> None:
    ids = [(await made(sessions, f"s{i}")).key.id for i in range(5)]
    await made(sessions, "s9", tenant="other")
    pages = []
    before: int | None = None
    while True:
        page = await sessions.page("acme", before=before, limit=2)
        pages.append([session.key.id for session in page.rows])
        before = page.next_before
        if before is None:
            break
    assert [id for page in pages for id in page] == ids[::-1]
    assert [len(page) for page in pages][:2] == [2, 2]
    everybody = await sessions.page(None)
    assert [session.key.id for session in everybody.rows] == ["s9", *ids[::-1]]


async def test_a_search_looks_for_the_text_as_it_stands(sessions: SessionStore) -> None:
    await made(sessions, "a%b")
    await made(sessions, "b", name="Trip plan")
    await made(sessions, "c_d")
    for text, found in (
        *(("", ["c_d", "b", "a%b"]), ("PLAN", ["b"]), ("a%", ["a%b"]), ("%", ["a%b"]), ("_", ["c_d"])),
        *(("\\", []), ("B", ["b", "a%b"]), ("trip p", ["b"]), ("nothing", []), ("\0", []), ("\udc80", [])),
    ):
        page = await sessions.page("acme", text=text)
        assert ([session.key.id for session in page.rows], page.next_before) == (found, None)


async def test_a_deleted_session_is_gone_and_another_takes_its_place(store: Store, sessions: SessionStore) -> None:
    session, _ = await sessions.create(KEY, name="old", agents=AGENTS)
    owner = await store.register_owner()
    await sessions.mark_due(KEY)
    held = await sessions.claim_due(owner)
    assert held is not None
    await sessions.delete(KEY)
    for call in (sessions.session, sessions.delete, sessions.agents, sessions.mark_due):
        with pytest.raises(SessionNotFound):
            await call(KEY)
    with pytest.raises(SessionNotFound):
        await sessions.change_agents(KEY, lambda old: old)
    assert await sessions.held(owner) == []
    anew, is_new = await sessions.create(KEY)
    assert is_new
    assert (anew.number > session.number, anew.name) == (True, None)
    assert await sessions.agents(KEY) == b""
    assert await sessions.claim_due(owner) is None
    # Whoever worked for the old one changes nothing about the new one, not even under the same owner.
    await sessions.mark_due(KEY)
    of_new = await sessions.claim_due(owner)
    assert await sessions.settle(owner, held) is None
    await sessions.release(owner, held)
    assert await sessions.held(owner) == [of_new]


# Runners


async def test_a_session_is_due_once_it_was_marked(store: Store, sessions: SessionStore) -> None:
    owner = await store.register_owner()
    session = await made(sessions)
    assert await sessions.claim_due(owner) is None
    assert await sessions.mark_due(KEY) == 1
    assert await sessions.mark_due(KEY) == 2
    marked = await sessions.session(KEY)
    assert marked.updated_at > session.updated_at
    held = await sessions.claim_due(owner)
    assert held == DueSession(marked, 2)
    assert await sessions.held(owner) == [held]
    assert await sessions.settle(owner, held) is None
    assert await sessions.held(owner) == []
    assert await sessions.claim_due(owner) is None
    assert await sessions.mark_due(KEY) == 3


async def test_what_has_been_due_for_longest_is_claimed_first(store: Store, sessions: SessionStore) -> None:
    owner = await store.register_owner()
    for id in ("a", "b", "c"):
        await made(sessions, id)
    for id in ("b", "c", "a", "b"):
        await sessions.mark_due(SessionKey("acme", id))
    claimed = [await sessions.claim_due(owner) for _ in range(4)]
    assert [due.session.key.id for due in claimed if due is not None] == ["b", "c", "a"]


async def test_of_many_runners_one_holds_a_session(store: Store, sessions: SessionStore) -> None:
    owners = [await store.register_owner() for _ in range(4)]
    for i in range(3):
        await made(sessions, f"s{i}")
        await sessions.mark_due(SessionKey("acme", f"s{i}"))
    claimed = await asyncio.gather(*(sessions.claim_due(owner) for owner in owners * 2))
    keys = [due.session.key.id for due in claimed if due is not None]
    assert sorted(keys) == sorted(set(keys))
    while (due := await sessions.claim_due(owners[0])) is not None:
        keys.append(due.session.key.id)
    assert sorted(keys) == ["s0", "s1", "s2"]


async def test_a_mark_that_comes_before_the_settling_is_not_lost(store: Store, sessions: SessionStore) -> None:
    owner = await store.register_owner()
    await made(sessions)
    await sessions.mark_due(KEY)
    held = await sessions.claim_due(owner)
    assert held is not None
    await sessions.mark_due(KEY)
    assert await sessions.claim_due(await store.register_owner()) is None
    again = await sessions.settle(owner, held)
    assert again == DueSession(await sessions.session(KEY), 2)
    assert await sessions.held(owner) == [again]
    assert await sessions.settle(owner, again) is None
    assert await sessions.held(owner) == []


async def test_of_marks_and_settlings_at_once_every_mark_is_seen(store: Store, sessions: SessionStore) -> None:
    owner = await store.register_owner()
    await made(sessions)
    seen = 0

    async def work() -> None:
        nonlocal seen
        while seen < 20:
            await asyncio.sleep(0)
            held = await sessions.claim_due(owner)
            while held is not None:
                seen = held.due
                held = await sessions.settle(owner, held)

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(work())
        for _ in range(20):
            tasks.create_task(sessions.mark_due(KEY))


async def test_a_released_session_is_due_for_others(store: Store, sessions: SessionStore) -> None:
    first, second = await store.register_owner(), await store.register_owner()
    await made(sessions)
    await sessions.mark_due(KEY)
    held = await sessions.claim_due(first)
    assert held is not None
    await sessions.release(second, held)
    assert await sessions.settle(second, held) is None
    assert await sessions.held(first) == [held]
    await sessions.release(first, held)
    assert await sessions.claim_due(second) == held
    await sessions.release(first, held)
    assert await sessions.held(second) == [held]


@pytest.mark.parametrize("is_killed", [True, False])
async def test_an_owner_that_ends_leaves_its_sessions_to_others(store: Store, is_killed: bool) -> None:
    sessions = store.sessions
    first, second = await store.register_owner(), await store.register_owner()
    for id in ("s1", "s2"):
        await made(sessions, id)
        await sessions.mark_due(SessionKey("acme", id))
    held = [await sessions.claim_due(first) for _ in range(2)]
    assert held[0] is not None
    assert await sessions.claim_due(second) is None
    if is_killed:
        (lease,) = [lease for lease in await store.leases() if lease.owner == first]
        await store.recover(lease)
    else:
        await store.release(first)
    assert await sessions.held(first) == []
    assert [await sessions.claim_due(second) for _ in range(2)] == held
    assert await sessions.settle(first, held[0]) is None
    assert len(await sessions.held(second)) == 2
    await sessions.mark_due(KEY)
    await sessions.release(second, held[0])
    with pytest.raises(OwnerFenced):
        await sessions.claim_due(first)


# Erasure


async def test_a_session_or_a_tenant_is_erased_with_its_records(store: Store, sessions: SessionStore) -> None:
    for tenant in ("acme", "other"):
        for id in ("s1", "s2", "s3"):
            await made(sessions, id, tenant)
    await store.erase(Erasure("acme", "s1", "r1"))
    assert len((await sessions.page("acme")).rows) == 3
    await store.erase(Erasure("acme", "s1"))
    assert [session.key.id for session in (await sessions.page("acme")).rows] == ["s3", "s2"]
    while (await store.erase(Erasure("acme"), limit=1)).remaining:
        pass
    assert (await sessions.page("acme")).rows == []
    assert len((await sessions.page("other")).rows) == 3
