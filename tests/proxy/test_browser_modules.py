"""The browser's modules as the proxy serves them."""

from __future__ import annotations

import gzip
from importlib.resources import files

import httpx
import pytest

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage.memory import MemoryStore
from tests.serving import Proxy, serving

MODULES = files("streamkeep.adapters") / "browser"


@pytest.mark.parametrize("name", sorted(file.name for file in MODULES.iterdir()))
async def test_each_file_is_served_to_pages_anywhere_and_kept_by_caches(proxy: Proxy, name: str) -> None:
    body = (MODULES / name).read_bytes()
    found = await proxy.client.get(f"/{name}", headers={"Origin": "https://app.example"})
    assert (found.status_code, found.content) == (200, body)
    expected = "text/javascript; charset=utf-8" if name.endswith(".js") else "text/plain; charset=utf-8"
    assert found.headers["Content-Type"] == expected
    assert found.headers["Access-Control-Allow-Origin"] == "*"
    assert found.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert found.headers["Cache-Control"].startswith("public, max-age=")
    again = await proxy.client.get(f"/{name}", headers={"If-None-Match": found.headers["ETag"]})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", found.headers["ETag"])
    head = await proxy.client.head(f"/{name}")
    assert (head.status_code, head.content, head.headers["ETag"]) == (200, b"", found.headers["ETag"])


async def test_a_module_is_compressed_for_those_who_take_it(proxy: Proxy) -> None:
    async with proxy.client.stream("GET", "/streamkeep.js", headers={"Accept-Encoding": "gzip"}) as found:
        packed = b"".join([piece async for piece in found.aiter_raw()])
    assert found.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == (MODULES / "streamkeep.js").read_bytes()
    plain = await proxy.client.get("/streamkeep.js", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert {found.headers["Vary"], plain.headers["Vary"]} == {"Accept-Encoding"}


async def test_a_module_needs_no_key() -> None:
    keys = BootstrapKeys.parse(["a-key-for-this-test"])
    async with serving(MemoryStore(), keys=keys) as proxy, httpx.AsyncClient() as client:
        assert (await client.get(f"{proxy.url}/streamkeep.js")).status_code == 200
        assert (await client.post(f"{proxy.url}/streamkeep.js")).status_code == 405
