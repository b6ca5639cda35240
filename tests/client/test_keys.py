"""The proxy's key, as the client and the command line send it: to the proxy, and to nobody else."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from streamkeep.client import AsyncFetchClient, DurableTransport, FetchClient, ServerError
from streamkeep.client import MemoryStore as LocalStore
from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import Upstream, upstream, whole

KEY = "the-proxys-own-key-0123"
BODY = b"data: hello\n\n"


@pytest.fixture
async def vendor() -> AsyncIterator[Upstream]:
    async with upstream(whole(BODY)) as served:
        yield served


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with serving(MemoryStore(), keys=BootstrapKeys.parse([f"acme={KEY}"])) as served:
        yield served


def check(vendor: Upstream) -> None:
    """The vendor got its own credential, and not a byte of ours."""
    (call,) = vendor.calls
    assert call.header("Authorization") == "Bearer vendors"
    assert KEY not in call.path + repr(call.headers)


async def test_fetch_sends_it(proxy: Proxy, vendor: Upstream) -> None:
    headers = {"Authorization": "Bearer vendors", "X-Session-ID": "s"}
    async with AsyncFetchClient(proxy.url, key=KEY, store=LocalStore()) as client:
        response = await client.fetch(f"{vendor.url}/v1", method="POST", headers=headers, content=b"{}")
        assert await response.aread() == BODY
        assert len(await client.active("s")) == 1
    check(vendor)


async def test_the_blocking_client_sends_it(proxy: Proxy, vendor: Upstream) -> None:
    def fetch() -> bytes:
        with FetchClient(proxy.url, key=KEY, store=LocalStore()) as client:
            headers = {"Authorization": "Bearer vendors"}
            return client.fetch(f"{vendor.url}/v1", method="POST", headers=headers, content=b"{}").read()

    assert await asyncio.to_thread(fetch) == BODY
    check(vendor)


async def test_the_transport_sends_it(proxy: Proxy, vendor: Upstream) -> None:
    transport = DurableTransport(proxy.url, key=KEY, store=LocalStore())
    async with httpx.AsyncClient(transport=transport) as client:
        answer = await client.post(f"{vendor.url}/v1", headers={"Authorization": "Bearer vendors"}, content=b"{}")
        assert answer.content == BODY
    check(vendor)


async def test_without_it_the_proxy_refuses(proxy: Proxy, vendor: Upstream) -> None:
    async with AsyncFetchClient(proxy.url, store=LocalStore()) as client:
        with pytest.raises(ServerError) as refused:
            await client.fetch(f"{vendor.url}/v1", method="POST", content=b"{}")
    assert (refused.value.status, refused.value.code) == (401, "missing_credentials")
    assert not vendor.calls


@pytest.mark.parametrize("is_option", [True, False])
async def test_the_command_line_sends_it(is_option: bool, proxy: Proxy, vendor: Upstream, tmp_path: Path) -> None:
    arguments = ["fetch", f"{vendor.url}/v1", "--server", proxy.url, "-d", "{}", "-H", "Authorization: Bearer vendors"]
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    if is_option:
        arguments += ["--key", KEY]
    else:
        environ["STREAMKEEP_KEY"] = KEY
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamkeep.client", *arguments), env=environ, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert (process.returncode, said) == (0, BODY)
    check(vendor)
