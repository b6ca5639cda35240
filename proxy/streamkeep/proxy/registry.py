"""`__registry__`: each tenant's stream of messages that tells which streams there are.

A message is a change event, `insert` or `delete`, keyed by the stream's path. The store notes what became of a stream
with its cause, so nothing gets lost; what was noted is told at once by the process that caused it, and within seconds by
any other one when that process died, or when a stream expired.
"""

from __future__ import annotations

import asyncio
import json
import logging

from streamkeep.proxy.readers import Readers
from streamkeep.proxy.rules.stream_headers import format_timestamp
from streamkeep.storage import REGISTRY, REGISTRY_CONFIG, Store, StoreError, StreamChange, StreamKey
from streamkeep.storage.rules.json_messages import encode_message

logger = logging.getLogger(__name__)

_POLL_SECONDS = 2.0


class Registry:
    """Has the registries written; `run` must be running."""

    def __init__(self, store: Store, readers: Readers) -> None:
        self._store = store
        self._readers = readers
        self._known: set[str] = set()
        self._news = asyncio.Event()

    async def ensure(self, tenant: str) -> None:
        """The registry exists when this returns. Raises: StoreUnavailable."""
        if tenant not in self._known:
            await self._store.create_stream(StreamKey(tenant, REGISTRY), REGISTRY_CONFIG)
            self._known.add(tenant)

    def streams_changed(self) -> None:
        """A stream was made or deleted here: tell of it soon."""
        self._news.set()

    async def run(self) -> None:
        """Tell what is to be told, for as long as the process lives."""
        while True:
            try:
                while written := await self._store.write_registries(_encode):
                    self._readers.streams_changed(written)
            except StoreError as exc:
                logger.warning("the registries could not be written, it is tried again: %s", type(exc).__name__)
                await asyncio.sleep(_POLL_SECONDS)
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                continue
            self._news.clear()


def _encode(change: StreamChange) -> bytes:
    event: dict[str, object] = {"type": "stream", "key": change.key.path}
    if not change.is_deletion:
        event["value"] = {
            "path": change.key.path,
            "contentType": change.content_type,
            "createdAt": format_timestamp(change.created_at),
        }
    event["headers"] = {"operation": "delete" if change.is_deletion else "insert"}
    return encode_message(json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode())
