"""`streamkeep tenants` on a database that a server is using."""

from __future__ import annotations

import asyncio

import click
import pytest

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.proxy.tenants_command import tenants_command
from streamkeep.storage import ApiKey, StreamKey
from streamkeep.storage.contract import LONG_AGO
from streamkeep.storage.postgres import PostgresStore
from tests.serving import serving
from tests.upstream import upstream, whole

ACME = "acme-key-0123456789abc"
OTHER = "other-key-0123456789ab"
KEYS = BootstrapKeys.parse([f"acme={ACME}", f"other={OTHER}"])


async def run(database_url: str, *arguments: str) -> int:
    environ = {"DATABASE_URL": database_url}
    code: int = await asyncio.to_thread(tenants_command.main, arguments, standalone_mode=False, obj=environ)
    return code


async def test_a_tenants_retention_and_its_end(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = PostgresStore(database_url)
    async with serving(store, keys=KEYS) as proxy, upstream(whole(b"secret", "text/plain")) as server:
        assert await run(database_url, "set", "acme", "--retention", "2h") == 0
        assert await run(database_url, "list") == 0
        assert "acme\t7200 s" in capsys.readouterr().out
        for key in (ACME, OTHER):
            created = await proxy.create("chat", "1", server.url, Streamkeep_Key=key)
            assert created.json()["retentionSeconds"] == (7200 if key == ACME else 86400)
            ours = {"Streamkeep-Key": key}
            put = {**ours, "Content-Type": "text/plain"}
            assert (await proxy.client.put("/v1/stream/own", content=b"x", headers=put)).status_code == 201
        assert await run(database_url, "set", "acme", "--retention", "default") == 0
        assert await store.retentions() == {}

        assert await run(database_url, "delete", "acme") == 2
        assert (await proxy.client.get("/api/chat/1", headers={"Streamkeep-Key": ACME})).status_code == 200
        await store.keys.create(ApiKey("k1", "acme", bytes(32), LONG_AGO))
        capsys.readouterr()
        assert await run(database_url, "delete", "acme", "--yes") == 0
        said = capsys.readouterr()
        assert "stk_k1" in said.err
        assert "secret" not in said.out + said.err
        for path in ("/api/chat/1", "/stream/data?sessionId=chat&requestId=1"):
            answer = await proxy.client.get(path, headers={"Streamkeep-Key": ACME})
            assert (answer.status_code, answer.json()["reason"]) == (410, "deleted")
            assert (await proxy.client.get(path, headers={"Streamkeep-Key": OTHER})).status_code == 200
        assert (await proxy.client.get("/v1/stream/own", headers={"Streamkeep-Key": ACME})).status_code == 404
        assert (await store.stream(StreamKey("other", "own"))).tail.position == 1
        assert await run(database_url, "delete", "acme", "--yes") == 0
        assert len(server.calls) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["set", "acme"],
        ["set", "acme", "--retention", "0"],
        ["set", "acme", "--retention", "soon"],
        ["set", "../x", "--retention", "1h"],
        ["delete"],
        [],
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        tenants_command.main(arguments, standalone_mode=False, obj={})
