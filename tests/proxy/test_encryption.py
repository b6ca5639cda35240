"""A tenant whose key is gone, seen from outside: an honest answer, and nobody else's trouble."""

from __future__ import annotations

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.storage.encryption import Key, Keyring
from streamkeep.storage.postgres import PostgresStore
from tests.serving import serving
from tests.upstream import upstream, whole

RING = Keyring({"acme": [Key.of(b"k" * 32)]})
ACME = "acme-key-0123456789abc"
KEYS = BootstrapKeys.parse([f"acme={ACME}"])


async def test_data_without_their_key_are_410_on_every_way_and_new_ones_are_read(database_url: str) -> None:
    async with upstream(whole(b"the secret", "text/plain")) as server:
        upstreams = Upstreams.parse(f"own={server.url}")
        named = {"X-Session-ID": "chat", "Idempotency-Key": "named"}
        async with serving(PostgresStore(database_url, keyring=RING), keys=KEYS, upstreams=upstreams) as proxy:
            proxy.client.headers["Streamkeep-Key"] = ACME
            assert (await proxy.client.post("/u/own/", headers=named)).content == b"the secret"
            await proxy.create("chat", "1", server.url)
            assert await proxy.read_all("chat", "1") == b"the secret"
            put = await proxy.client.put(
                "/v1/stream/own", content=b"the secret", headers={"Content-Type": "text/plain"}
            )
            assert put.status_code == 201
        async with serving(PostgresStore(database_url), keys=KEYS, upstreams=upstreams) as proxy:
            proxy.client.headers["Streamkeep-Key"] = ACME
            ids = "sessionId=chat&requestId=1&offset=-1"
            generation = "/v1/stream/generations/chat/1"
            paths = [f"/stream/data?{ids}", f"/stream/control?{ids}", f"{generation}/data", "/v1/stream/own"]
            for path in paths:
                for live in ("", "live=long-poll", "live=sse"):
                    answer = await proxy.client.get(f"{path}{'&' if '?' in path else '?offset=-1&'}{live}")
                    assert (answer.status_code, answer.json()["reason"]) == (410, "key_destroyed"), (path, live)
            answer = await proxy.client.post("/u/own/", headers=named)
            assert (answer.status_code, answer.json()["reason"]) == (410, "key_destroyed")
            assert (await proxy.create("chat", "1", server.url)).json()["state"] == "done"
            await proxy.create("chat", "2", server.url)
            assert await proxy.read_all("chat", "2") == b"the secret"
            assert (await proxy.client.delete("/api/chat/1")).status_code == 200
        assert len(server.calls) == 3
