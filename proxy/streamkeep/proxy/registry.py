"""`__registry__`: a stream of messages that tells which streams there are, written with each creation and deletion.

A message is a change event, `insert` or `delete`, keyed by the stream's path. It follows its cause by one commit, so a
process that dies in between leaves it out, and a stream that expires by itself is not told: whoever needs certainty asks
the stream itself.
"""

from __future__ import annotations

import json
import logging

from streamkeep.proxy.rules.stream_headers import format_timestamp
from streamkeep.proxy.rules.stream_paths import REGISTRY
from streamkeep.storage import Store, StoreError, StreamAppend, StreamConfig, StreamInfo, StreamKey, StreamNotFound
from streamkeep.storage.appender import Appender
from streamkeep.storage.rules.json_messages import encode_message

logger = logging.getLogger(__name__)

_CONTENT_TYPE = "application/json"


class Registry:
    """Writes each tenant's registry."""

    def __init__(self, store: Store, appender: Appender) -> None:
        self._store = store
        self._appender = appender
        self._known: set[str] = set()

    async def ensure(self, tenant: str) -> None:
        """The registry exists when this returns. Raises: StoreUnavailable."""
        if tenant not in self._known:
            await self._store.create_stream(StreamKey(tenant, REGISTRY), StreamConfig(_CONTENT_TYPE))
            self._known.add(tenant)

    async def created(self, stream: StreamInfo) -> None:
        """Tell of a new stream."""
        value = {
            "path": stream.key.path,
            "contentType": stream.content_type,
            "createdAt": format_timestamp(stream.created_at),
        }
        await self._tell(stream.key, {"value": value, "headers": {"operation": "insert"}})

    async def deleted(self, key: StreamKey) -> None:
        """Tell of a stream that is no more."""
        await self._tell(key, {"headers": {"operation": "delete"}})

    async def _tell(self, key: StreamKey, change: dict[str, object]) -> None:
        """What happened has happened: a registry that cannot be written does not undo it."""
        message = json.dumps({"type": "stream", "key": key.path, **change}, ensure_ascii=False, separators=(",", ":"))
        append = StreamAppend(StreamKey(key.tenant, REGISTRY), encode_message(message.encode()), _CONTENT_TYPE)
        try:
            await self.ensure(key.tenant)
            try:
                await self._appender.append(append)
            except StreamNotFound:
                self._known.discard(key.tenant)
                await self.ensure(key.tenant)
                await self._appender.append(append)
        except StoreError as exc:
            logger.warning("the registry could not be told of a stream: %s", type(exc).__name__)
