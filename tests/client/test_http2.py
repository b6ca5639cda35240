"""The clients over HTTP/2, to a proxy behind a real nginx with a certificate of its own; skipped where none is installed."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from streamkeep.client import AsyncFetchClient, DurableTransport, FetchClient, MemoryStore, stream
from streamkeep.client._network import Network
from tests.installed import free_port
from tests.serving import Proxy
from tests.upstream import Exchange, Upstream, upstream

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PARTS = [bytes([number]) * 3000 for number in range(40)]
BODY = b"".join(PARTS)

_CONFIGURATION = """
{user}
daemon off;
pid {home}/pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log {home}/access.log combined;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {home}/certificate.pem;
        ssl_certificate_key {home}/key.pem;
        location / {{
            proxy_pass {proxy_url};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_buffering off;
            proxy_request_buffering off;
        }}
    }}
}}
"""

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@dataclass(frozen=True, slots=True)
class Front:
    """A running nginx: its URL, whom to trust for it, and the requests that it has answered, as it logs them."""

    url: str
    trust: ssl.SSLContext
    log: Path
    version: str = "HTTP/2.0"

    def blocking(self) -> httpx.BaseTransport:
        return httpx.HTTPTransport(http2=True, verify=self.trust) if self.version == "HTTP/2.0" else Network(self.trust)

    def awaiting(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(http2=True, verify=self.trust)

    def lines(self) -> list[str]:
        return [line for line in self.log.read_text("utf-8").splitlines() if "/health" not in line]


def write_certificate(home: Path) -> None:
    """One for 127.0.0.1 that nobody else has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "front")]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (home / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    (home / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture
async def front(proxy: Proxy) -> AsyncIterator[Front]:
    assert NGINX is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="http2-") as name:
        home = Path(name)
        write_certificate(home)
        user = "user root;" if os.geteuid() == 0 else ""
        text = _CONFIGURATION.format(home=home, port=port, proxy_url=proxy.url, user=user)
        (home / "nginx.conf").write_text(text)
        process = await asyncio.create_subprocess_exec(NGINX, "-p", name, "-c", f"{home}/nginx.conf")
        trust = ssl.create_default_context(cafile=home / "certificate.pem")
        found = Front(f"https://127.0.0.1:{port}", trust, home / "access.log")
        try:
            await listening(process, found)
            yield found
        finally:
            process.terminate()
            await process.wait()


async def listening(process: asyncio.subprocess.Process, front: Front) -> None:
    async with asyncio.timeout(20), httpx.AsyncClient(transport=front.awaiting()) as client:
        while True:
            assert process.returncode is None, "nginx did not start"
            try:
                assert (await client.get(f"{front.url}/health")).http_version == "HTTP/2"
                return
            except httpx.ConnectError:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def vendor() -> AsyncIterator[Upstream]:
    """It sends each part when the one before has gone."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/octet-stream"})
        for part in PARTS:
            await exchange.chunk(part)
            await asyncio.sleep(0)
        await exchange.end()

    async with upstream(play) as server:
        yield server


def fetched(front: Front, url: str, session: str) -> bytes:
    with FetchClient(front.url, store=MemoryStore(), http=front.blocking()) as client:
        whole = b"".join(client.fetch(url, session_id=session, request_id="1").iter_raw())
        again = client.resume(session, "1", replay_from_start=True)
        assert b"".join(again.iter_raw()) == whole
        return whole


def carried(front: Front, url: str, session: str) -> bytes:
    transport = DurableTransport(front.url, store=MemoryStore(), session_id=session, http=front.blocking())
    with httpx.Client(transport=transport) as client:
        return client.get(url).content


def streamed(front: Front, url: str, session: str) -> bytes:
    with FetchClient(front.url, store=MemoryStore(), http=front.blocking()) as client:
        client.fetch(url, session_id=session, request_id="1").close()
    location = f"{front.url}/v1/stream/generations/{session}/1/data"
    with stream(location, live="sse", http=front.blocking()) as response:
        return b"".join(response.iter_bytes())


@pytest.mark.parametrize("read", [fetched, carried, streamed])
@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/1.1"])
async def test_a_generation_is_read_whole(
    front: Front, session: str, version: str, read: Callable[[Front, str, str], bytes]
) -> None:
    front = replace(front, version=version)
    async with vendor() as server:
        assert await asyncio.to_thread(read, front, server.url, session) == BODY
        assert len(server.calls) == 1
    versions = [version in line for line in front.lines()]
    assert len(versions) >= 2
    assert all(versions)


async def test_many_generations_share_a_connection_and_are_read_whole(front: Front, session: str) -> None:
    """One that is left, or cancelled, takes nothing from the others."""
    async with (
        vendor() as server,
        AsyncFetchClient(front.url, store=MemoryStore(), http=front.awaiting()) as client,
    ):

        async def whole(number: int) -> bytes:
            response = await client.fetch(server.url, session_id=session, request_id=str(number))
            if number % 3 == 0:
                await response.aclose()
                response = await client.resume(session, str(number))
            return b"".join([piece async for piece in response.aiter_raw()])

        async with asyncio.timeout(60):
            assert await asyncio.gather(*map(whole, range(12))) == [BODY] * 12
