"""A bare pass-through, as one writes it in an afternoon: nothing is kept, and what a dropped connection misses is gone.

It is what the proxy's cost is measured against: the least that forwarding costs with these libraries. `--transport`
chooses what is below httpx: its own, or the one that the proxy uses.
"""

from __future__ import annotations

import argparse
import socket
import sys

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from streamkeep.proxy.upstream import PRIVATE, UpstreamTransport

_PER_CONNECTION = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


def create_app(origin: str, transport: httpx.AsyncBaseTransport) -> Starlette:
    """Forwards every request to the same path at `origin`, and the answer as it comes."""
    client = httpx.AsyncClient(base_url=origin, transport=transport, timeout=None)

    async def forward(request: Request) -> StreamingResponse:
        outgoing = client.build_request(
            request.method,
            f"{request.url.path}?{request.url.query}",
            headers=[(name, value) for name, value in request.headers.items() if name not in _PER_CONNECTION],
            content=await request.body(),
            extensions={PRIVATE: True},
        )
        answer = await client.send(outgoing, stream=True)
        headers = {name: value for name, value in answer.headers.items() if name not in _PER_CONNECTION}
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, headers, background=BackgroundTask(answer.aclose)
        )

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.passthrough", description=__doc__)
    parser.add_argument("--origin", required=True, help="base URL of the upstream")
    parser.add_argument("--transport", choices=["httpx", "streamkeep"], default="httpx")
    chosen = parser.parse_args()
    transport = (
        httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))
        if chosen.transport == "httpx"
        else UpstreamTransport()
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            create_app(chosen.origin, transport), loop="uvloop", http="httptools", log_level="warning", lifespan="off"
        )
        uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
