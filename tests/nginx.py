"""A real nginx in front of a server, with the configuration that ships as an example or another one."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.installed import free_port

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
EXAMPLE = (Path(__file__).parents[1] / "examples" / "nginx.conf").read_text("utf-8")

_AROUND = """
{user}
daemon off;
pid {home}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    include {home}/streamkeep.conf;
    server {{
        listen unix:{home}/status;
        location / {{ stub_status; }}
    }}
}}
"""


class Front:
    """A running nginx: its URL, a client for it, and how many requests it has read and not answered."""

    def __init__(self, home: Path, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client
        self._home = home

    async def requests(self) -> int:
        transport = httpx.AsyncHTTPTransport(uds=str(self._home / "status"))
        async with httpx.AsyncClient(transport=transport) as client:
            found = re.search(r"Writing: (\d+)", (await client.get("http://nginx/")).text)
        assert found is not None
        return int(found[1]) - 1  # The one that asks.


@asynccontextmanager
async def in_front_of(url: str, configuration: str = EXAMPLE) -> AsyncIterator[Front]:
    """nginx before the server at a URL, configured as the example is but for addresses and folders."""
    assert NGINX is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nginx-") as name:
        home = Path(name)
        for theirs, here in {
            "server 127.0.0.1:4000;": f"server {url.removeprefix('http://')};",
            "listen 80;": f"listen 127.0.0.1:{port};",
            "/var/cache/nginx/streamkeep": f"{home}/cache",
        }.items():
            configuration = configuration.replace(theirs, here)
        (home / "streamkeep.conf").write_text(configuration)
        user = "user root;" if os.geteuid() == 0 else ""
        (home / "nginx.conf").write_text(_AROUND.format(home=home, user=user))
        process = await asyncio.create_subprocess_exec(NGINX, "-p", name, "-c", f"{home}/nginx.conf")
        front, limits = f"http://127.0.0.1:{port}", httpx.Limits(max_connections=None)
        try:
            async with httpx.AsyncClient(base_url=front, timeout=60, limits=limits) as client:
                await _listening(process, client)
                yield Front(home, front, client)
        finally:
            process.terminate()
            await process.wait()


async def _listening(process: asyncio.subprocess.Process, client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while True:
            assert process.returncode is None, "nginx did not start"
            try:
                await client.get("/health")
                return
            except httpx.ConnectError:
                await asyncio.sleep(0.01)
