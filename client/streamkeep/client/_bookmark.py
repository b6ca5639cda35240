"""One generation's place in the local store: never past what the caller has taken, and never far behind it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime

from streamkeep.client._channel import Channel
from streamkeep.client._stores import GenerationRecord, GenerationStore, RecordState

logger = logging.getLogger("streamkeep.client")

_SAVE_SECONDS = 0.25
_SAVE_BYTES = 64 * 1024


class Bookmark:
    """Keep the record of one generation while its body is read."""

    def __init__(self, channel: Channel, store: GenerationStore, record: GenerationRecord) -> None:
        self.record = record
        self._channel = channel
        self._store = store
        self._saved_at = 0.0

    async def place(self) -> None:
        """Record the generation before it is asked for; an error of the store is the caller's to see."""
        await self._put(self.record)

    async def remove(self) -> None:
        """There is nothing to come back to."""
        record = self.record
        try:
            await self._channel.run(lambda: self._store.remove(record.proxy_url, record.session_id, record.request_id))
        except Exception:
            logger.warning("the record of %s/%s stays", record.session_id, record.request_id, exc_info=True)

    def is_due(self, position: int, *, now: float) -> bool:
        """Whether it is time to save that the caller has taken everything before `position`; `now` is monotonic."""
        moved = position - self.record.position
        return moved >= _SAVE_BYTES or (moved != 0 and now - self._saved_at >= _SAVE_SECONDS)

    async def taken(self, position: int) -> None:
        """Save that the caller has taken everything before `position`."""
        if position != self.record.position:
            await self._save(replace(self.record, position=position, handed_position=position))

    async def left(self, *, taken: int, handed: int) -> None:
        """The caller closed the body early, with everything before `handed` in its hands."""
        await self._save(replace(self.record, state=RecordState.LEFT, position=taken, handed_position=handed))

    async def ended(self, position: int) -> None:
        """The end was delivered. The record stays for a while, to tell "ended" from "never was"."""
        await self._save(replace(self.record, state=RecordState.ENDED, position=position, handed_position=position))

    async def _save(self, record: GenerationRecord) -> None:
        """A store that fails now costs a repeat of some bytes after a resume; the body goes on."""
        try:
            await self._put(record)
        except Exception:
            logger.warning("the place in %s/%s was not kept", record.session_id, record.request_id, exc_info=True)

    async def _put(self, record: GenerationRecord) -> None:
        record = replace(record, updated_at=datetime.now(UTC))
        self._saved_at = time.monotonic()
        await self._channel.run(lambda: self._store.put(record))
        self.record = record
