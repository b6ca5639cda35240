"""When the client tries again, and when it gives up: tenacity policies over the channel's own clock."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential
from tenacity.stop import StopBaseT

from streamkeep.client._channel import Channel
from streamkeep.client._errors import ConnectionFailed, ServerError
from streamkeep.client._rules.outages import Outage

T = TypeVar("T")

Sleep = Callable[[float], Awaitable[None]]

_FIRST_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the client goes on trying, in seconds.

    `send_seconds` bounds the repeats of a request that was not answered. A body is given up when the proxy could not be
    heard for `silence_seconds`, which waiting for a slow upstream on a healthy connection is not, or after
    `max_reconnects`; reading a stream, each byte that comes sets that count back to 0. A connection that gives nothing, not
    even a heartbeat, for `stall_seconds` is replaced.

    Pauses between attempts are drawn at random below a bound, which begins at `first_pause_seconds` (0.2, or
    `pause_seconds` where that is less), is multiplied by `growth` each time, and ends at `pause_seconds`. What a server
    asks for with `Retry-After` is waited for even when it is longer.

    Raises:
        ValueError: a value makes no sense; the message begins with its name.
    """

    send_seconds: float = 30.0
    silence_seconds: float = 120.0
    stall_seconds: float = 45.0
    max_reconnects: int = 1000
    pause_seconds: float = 5.0
    first_pause_seconds: float | None = None
    growth: float = 2.0

    def __post_init__(self) -> None:
        for name in ("send_seconds", "silence_seconds", "max_reconnects"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("stall_seconds", "pause_seconds", "first_pause_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be more than 0")
        if self.first_pause_seconds is not None and self.pause_seconds < self.first_pause_seconds:
            raise ValueError("pause_seconds must not be less than first_pause_seconds")
        if self.growth < 1:
            raise ValueError("growth must be 1 or more")


class Interrupted(Exception):
    """An attempt came to nothing, and another may not. Never leaves the core; `__cause__` is what happened."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def repeats(patience: Patience, sleep: Sleep, stop: StopBaseT) -> AsyncRetrying:
    """Attempts until one is not interrupted, or `stop` says so; then the last `Interrupted` is raised."""
    # Each pause is drawn anew, so that readers that were cut off together do not come back together.
    first = patience.first_pause_seconds or min(_FIRST_PAUSE_SECONDS, patience.pause_seconds)
    backoff = wait_random_exponential(multiplier=first, max=patience.pause_seconds, exp_base=patience.growth)

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked_seconds = error.retry_after_seconds if isinstance(error, Interrupted) else None
        return max(backoff(state), asked_seconds or 0.0)

    return AsyncRetrying(sleep=sleep, stop=stop, wait=pause, retry=retry_if_exception_type(Interrupted), reraise=True)


async def repeatedly(
    attempt: Callable[[], Coroutine[Any, Any, T]],
    *,
    channel: Channel,
    patience: Patience,
    failure: str,
    is_repeatable: bool = True,
) -> T:
    """Call a coroutine function until it is not interrupted, patience is over, or the channel is closed.

    Raises:
        ServerError: the last attempt was refused.
        ConnectionFailed: the last attempt was not answered; `failure` begins its message.
    """
    outage = Outage(patience.send_seconds if is_repeatable else 0.0)
    times_closed = channel.times_closed

    interrupted: list[Interrupted] = []

    async def observed() -> T:
        if interrupted:
            raise interrupted.pop()
        outage.attempt_begins(now=time.monotonic())
        return await attempt()

    def is_over(state: RetryCallState) -> bool:
        is_too_long = outage.is_too_long(now=time.monotonic(), pause_seconds=state.upcoming_sleep)
        return is_too_long or channel.times_closed != times_closed

    # The state of a retry leads back to what was raised, and so to a request's body: it is kept only where there is something
    # to retry, since the collector may come late.
    try:
        return await observed()
    except Interrupted as exc:
        interrupted.append(exc)
    try:
        return await repeats(patience, channel.sleep, is_over)(observed)
    except Interrupted as exc:
        exc.__traceback__ = None
        if isinstance(exc.__cause__, ServerError):
            raise exc.__cause__ from None
        raise ConnectionFailed(f"{failure}: {exc}") from exc.__cause__
