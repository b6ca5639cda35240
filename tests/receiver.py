"""A webhook receiver: a real server that keeps what it gets and answers as the test says."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from streamkeep.proxy.server import bind


@dataclass(frozen=True, slots=True)
class Received:
    """One webhook: its header, raw body, and the value in it."""

    signature: str
    raw: bytes
    value: dict[str, Any]

    @property
    def paths(self) -> list[str]:
        return [stream["path"] for stream in self.value["streams"]]

    @property
    def callback(self) -> dict[str, Any]:
        """A callback's body, without acknowledgements."""
        return {"wake_id": self.value["wake_id"], "generation": self.value["generation"]}

    @property
    def acks(self) -> list[dict[str, str]]:
        """All that the wake showed."""
        return [{"stream": stream["path"], "offset": stream["tail_offset"]} for stream in self.value["streams"]]

    def verify(self, jwks: dict[str, Any]) -> None:
        """Raises: InvalidSignature, or whatever a malformed header makes."""
        parts = dict(part.split("=", 1) for part in self.signature.split(","))
        (key,) = [key for key in jwks["keys"] if key["kid"] == parts["kid"]]
        public = Ed25519PublicKey.from_public_bytes(_base64url(key["x"]))
        public.verify(_base64url(parts["ed25519"]), f"{parts['t']}.".encode() + self.raw)


Answer = Callable[[Received], Awaitable[Response]]


async def accept(webhook: Received) -> Response:
    return Response(status_code=202)


async def done(webhook: Received) -> Response:
    return JSONResponse({"done": True})


class Receiver:
    """`answer` may be changed at any time; `get` waits for the next webhook."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answer: Answer = done
        self.received: list[Received] = []
        self._queue: asyncio.Queue[Received] = asyncio.Queue()

    async def get(self) -> Received:
        async with asyncio.timeout(60):
            return await self._queue.get()

    @property
    def is_quiet(self) -> bool:
        """Nothing has come that was not taken."""
        return self._queue.empty()

    async def __call__(self, request: Request) -> Response:
        raw = await request.body()
        webhook = Received(request.headers["webhook-signature"], raw, await request.json())
        self.received.append(webhook)
        self._queue.put_nowait(webhook)
        return await self.answer(webhook)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    listener = bind("127.0.0.1", 0)
    receiver = Receiver(f"http://127.0.0.1:{listener.getsockname()[1]}/hook")
    app = Starlette(routes=[Route("/hook", receiver.__call__, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(60):
            while not server.started:
                await asyncio.sleep(0.005)
        yield receiver
    finally:
        server.should_exit = True
        await task


def _base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
