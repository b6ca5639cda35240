"""The relay: one accepted response's body, from the upstream socket into its data stream.

It looks at nothing and changes nothing. An `EndingObserver` watches from the side and only labels the end. When the
recorder is full the relay stops reading, and upstream's clocks stop with it: a pause of ours is never upstream's fault.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import httpx

from streamkeep.proxy.connections import ResponseBody
from streamkeep.proxy.rules.endings import EndingObserver, Observation
from streamkeep.storage import Code, Terminal, Usage
from streamkeep.storage.rules.offsets import format_offset
from streamkeep.storage.writer import Recorder


@dataclass(frozen=True, slots=True)
class End:
    """How a call ended, and what is worth saying about it."""

    code: Code
    detail: str | None = None


class Lost(Exception):
    """The generation is not ours any more: another process has ended it."""


class Relay:
    """Moves one body. `waiting_since` is the monotonic instant since which upstream owes us content, None while we are
    the ones who do not read; `paused_seconds` is how long that was in all. `on_first_chunk` is told of the first bytes."""

    __slots__ = (
        "_digest",
        "_is_too_large",
        "_max_bytes",
        "_observer",
        "_on_first_chunk",
        "_seen",
        "paused_seconds",
        "recorder",
        "waiting_since",
    )

    def __init__(
        self,
        recorder: Recorder,
        observer: EndingObserver | None,
        *,
        max_bytes: int,
        on_first_chunk: Callable[[], None] = lambda: None,
    ) -> None:
        self.recorder = recorder
        self.waiting_since: float | None = None
        self.paused_seconds = 0.0
        self._observer = observer
        self._seen: Observation | None = None
        self._max_bytes = max_bytes
        self._is_too_large = False
        self._on_first_chunk = on_first_chunk
        self._digest = hashlib.sha256()

    @property
    def size_bytes(self) -> int:
        """How much of the body was taken."""
        return self.recorder.position

    async def run(self, body: ResponseBody) -> End:
        """Relay until the body ends, one way or another.

        Raises:
            Lost: somebody else ended the generation.
        """
        try:
            async with aclosing(body):
                is_whole = await self._pump(body)
        except httpx.TransportError as exc:
            # The body keeps it, and the traceback leads to the body.
            return self._broken(exc.with_traceback(None))
        finally:
            self.waiting_since = None
        return self._whole() if is_whole else End(Code.TOO_LARGE)

    def stopped(self, reason: End) -> End:
        """The end of a call that was stopped from outside: an upstream that had said its last word, and only keeps the
        connection, is neither late nor silent."""
        if reason.code in (Code.STALLED, Code.TIMED_OUT):
            observation = self.observation()
            if observation is not None and observation.ended and observation.failed is None:
                return End(Code.COMPLETE)
        return reason

    def terminal(self, end: End, *, duration_ms: int) -> Terminal:
        """The one event that tells this end, with the digest and usage of what was relayed."""
        return Terminal(
            code=end.code,
            offset=format_offset(self.size_bytes),
            size_bytes=self.size_bytes,
            sha256=self._digest.hexdigest(),
            duration_ms=duration_ms,
            usage=self._usage(),
            detail=end.detail,
        )

    async def _pump(self, body: ResponseBody) -> bool:
        """Whether the body came to its end within the limit."""
        self.waiting_since = time.monotonic()
        while not await body.pour(self._take):
            if self._is_too_large:
                return False
            if self.recorder.ended.done():
                raise Lost
            await self._pause()
        return True

    def _take(self, data: bytes) -> bool:
        """Take what upstream sent, in the event loop's own call; whether more may come now."""
        recorder, observer = self.recorder, self._observer
        position = recorder.position
        if not position:
            self._on_first_chunk()
        if position + len(data) > self._max_bytes:
            self._is_too_large = True
            data = data[: self._max_bytes - position]
        self._digest.update(data)
        has_room = recorder.append(data)
        if observer is None or observer.feed(data):
            self.waiting_since = time.monotonic()
        return has_room and not (self._is_too_large or recorder.ended.done())

    async def _pause(self) -> None:
        """Wait until there is room."""
        since, self.waiting_since, paused_at = self.waiting_since, None, time.monotonic()
        await self.recorder.room()
        seconds = time.monotonic() - paused_at
        self.paused_seconds += seconds
        self.waiting_since = None if since is None else since + seconds

    @property
    def usage_so_far(self) -> Usage | None:
        """Tokens, as far as the vendor has told them."""
        if self._seen is not None or self._observer is None:
            return self._usage()
        return self._observer.usage_so_far

    def observation(self) -> Observation | None:
        """What was seen in the body, once no more of it comes."""
        if self._seen is None and self._observer is not None:
            self._seen = self._observer.finish()
        return self._seen

    def _usage(self) -> Usage | None:
        observation = self.observation()
        return observation.usage if observation else None

    def _whole(self) -> End:
        observation = self.observation()
        if observation is None:
            return End(Code.COMPLETE)
        if observation.failed is not None:
            return End(Code.UPSTREAM_FAILED, observation.failed)
        return End(Code.TRUNCATED if observation.ended is False else Code.COMPLETE)

    def _broken(self, exc: httpx.TransportError) -> End:
        observation = self.observation()
        if observation is not None and observation.failed is not None:
            return End(Code.UPSTREAM_FAILED, observation.failed)
        if observation is not None and observation.ended:
            return End(Code.COMPLETE)
        return End(Code.UPSTREAM_FAILED, str(exc) or None)
