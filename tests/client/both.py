"""The sync and the async client under one face, so that a test says once what both must do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal

import httpx

from streamkeep.client import AsyncFetchClient, FetchClient, GenerationInfo, MemoryStore, Patience
from streamkeep.client._network import Network
from tests.serving import CERTIFICATES

# The pauses of the shipped patience only cost time here.
QUICK = Patience(pause_seconds=0.01)

Kind = Literal["sync", "async"]


class Reading:
    """A response whose body is taken piece by piece."""

    def __init__(self, response: httpx.Response, kind: Kind) -> None:
        self.response = response
        self._kind = kind
        self._pieces: Iterator[bytes] | AsyncIterator[bytes] = (
            response.iter_raw() if kind == "sync" else response.aiter_raw()
        )

    async def piece(self) -> bytes | None:
        """The next piece, or None at the end."""
        if isinstance(self._pieces, AsyncIterator):
            return await anext(self._pieces, None)
        return await asyncio.to_thread(next, self._pieces, None)

    async def rest(self) -> bytes:
        body = b""
        while (piece := await self.piece()) is not None:
            body += piece
        return body

    async def failing_rest(self) -> tuple[bytes, Exception | None]:
        """The rest up to where an exception is raised, and that."""
        body = b""
        try:
            while (piece := await self.piece()) is not None:
                body += piece
        except Exception as exc:  # noqa: BLE001  # which one it is, the test says
            return body, exc
        return body, None

    async def at_least(self, size: int) -> bytes:
        """Pieces until there are so many bytes."""
        body = b""
        while len(body) < size:
            piece = await self.piece()
            assert piece is not None, f"the body ended after {len(body)} bytes"
            body += piece
        return body

    async def decoded(self) -> bytes:
        return await self.response.aread() if self._kind == "async" else await asyncio.to_thread(self.response.read)

    async def decoded_sizes(self) -> list[int]:
        """The size of each piece, decoded."""
        if self._kind == "async":
            return [len(piece) async for piece in self.response.aiter_bytes()]
        return await asyncio.to_thread(lambda: [len(piece) for piece in self.response.iter_bytes()])

    async def close(self) -> None:
        if self._kind == "async":
            await self.response.aclose()
        else:
            await asyncio.to_thread(self.response.close)


class Client:
    """A client of either kind; the sync one works in threads."""

    def __init__(self, kind: Kind, proxy_url: str | Sequence[str], **options: Any) -> None:
        self.kind = kind
        chosen = {"store": MemoryStore(), "patience": QUICK, **options}
        self._client: FetchClient | AsyncFetchClient
        if kind == "sync":
            self._client = FetchClient(proxy_url, http=Network(CERTIFICATES), **chosen)
        else:
            self._client = AsyncFetchClient(proxy_url, http=httpx.AsyncHTTPTransport(verify=CERTIFICATES), **chosen)

    async def fetch(self, *args: Any, **options: Any) -> Reading:
        if isinstance(self._client, FetchClient):
            return Reading(await asyncio.to_thread(self._client.fetch, *args, **options), self.kind)
        return Reading(await self._client.fetch(*args, **options), self.kind)

    async def resume(self, *args: Any, **options: Any) -> Reading:
        if isinstance(self._client, FetchClient):
            return Reading(await asyncio.to_thread(self._client.resume, *args, **options), self.kind)
        return Reading(await self._client.resume(*args, **options), self.kind)

    async def active(self, session_id: str) -> list[GenerationInfo]:
        if isinstance(self._client, FetchClient):
            return await asyncio.to_thread(self._client.active, session_id)
        return await self._client.active(session_id)

    async def cancel(self, session_id: str, request_id: str) -> str:
        if isinstance(self._client, FetchClient):
            return await asyncio.to_thread(self._client.cancel, session_id, request_id)
        return await self._client.cancel(session_id, request_id)

    async def close(self) -> None:
        if isinstance(self._client, FetchClient):
            await asyncio.to_thread(self._client.close)
        else:
            await self._client.aclose()
