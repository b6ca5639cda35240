"""The store's part of keys, held by every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from streamkeep.storage import ApiKey, ItemRefused, KeyStore, Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ApiKey("k1", "acme", bytes(32), NOW)
WHOLE = ApiKey(
    "k2",
    "other",
    b"d" * 32,
    NOW + timedelta(seconds=1),
    name="a name",
    upstreams=("openai", "https://api.example.com/**"),
    max_running=3,
    max_per_minute=60,
    is_operator=True,
    expires_at=NOW + timedelta(days=1),
)


@pytest.fixture
def keys(store: Store) -> KeyStore:
    return store.keys


async def test_a_key_is_found_as_it_was_made(keys: KeyStore) -> None:
    assert await keys.find("k1") is None
    assert not await keys.exists()
    assert await keys.create(KEY)
    assert await keys.create(WHOLE)
    assert await keys.find("k1") == KEY
    assert await keys.find("k2") == WHOLE
    assert await keys.all() == [KEY, WHOLE]
    assert await keys.all("acme") == [KEY]
    assert await keys.exists()


async def test_a_key_may_call_nothing_at_all(keys: KeyStore) -> None:
    await keys.create(replace(KEY, upstreams=()))
    found = await keys.find("k1")
    assert found is not None
    assert found.upstreams == ()


async def test_an_id_belongs_to_one_key(keys: KeyStore) -> None:
    await keys.create(KEY)
    with pytest.raises(ItemRefused):
        await keys.create(replace(KEY, tenant="other"))
    assert await keys.all() == [KEY]


async def test_of_many_first_keys_one_is_made(keys: KeyStore) -> None:
    made = await asyncio.gather(*(keys.create(replace(KEY, id=f"first-{i}"), if_first=True) for i in range(8)))
    assert made.count(True) == 1
    assert len(await keys.all()) == 1
    assert await keys.create(WHOLE)


async def test_a_revoked_key_stays_and_is_revoked_once(keys: KeyStore) -> None:
    assert await keys.revoke("k1") is None
    await keys.create(KEY)
    revoked = await keys.revoke("k1")
    assert revoked is not None
    assert revoked.revoked_at is not None
    assert await keys.revoke("k1") == revoked
    assert await keys.find("k1") == revoked
    assert await keys.exists()
    assert not await keys.create(WHOLE, if_first=True)


async def test_the_first_signing_key_is_the_stores_own(store: Store) -> None:
    (first,) = await store.keys.signing_keys()
    assert (first.id, first.secret, first.is_only) == (1, await store.signing_key(), False)


async def test_signing_keys_come_in_the_order_of_their_making(store: Store) -> None:
    second = await store.keys.rotate_signing_key(b"2" * 32)
    third = await store.keys.rotate_signing_key(b"3" * 32, is_only=True)
    first, *rotated = await store.keys.signing_keys()
    assert rotated == [second, third]
    assert first.id < second.id < third.id
    assert (second.is_only, third.is_only) == (False, True)
    assert second.secret == b"2" * 32


def test_no_secret_shows() -> None:
    assert "dddd" not in repr(WHOLE)
