"""When the client tries again, and when it gives up: tenacity policies over the channel's own clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_before_delay, wait_random_exponential
from tenacity.stop import StopBaseT

# Each pause is drawn anew between nothing and this, so that readers cut off together do not come back together.
_BACKOFF = wait_random_exponential(multiplier=0.2, max=5)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the client goes on trying, in seconds.

    `send_seconds` bounds the repeats of a request that was not answered. A body is given up when the proxy could not be
    heard for `silence_seconds`, which waiting for a slow upstream on a healthy connection is not, or after
    `max_reconnects`. A connection that gives nothing, not even a heartbeat, for `stall_seconds` is replaced.
    """

    send_seconds: float = 30.0
    silence_seconds: float = 120.0
    stall_seconds: float = 45.0
    max_reconnects: int = 1000


class Interrupted(Exception):
    """An attempt came to nothing, and another may not. Never leaves the core; `__cause__` is what happened."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def repeats(sleep: Callable[[float], Awaitable[None]], *, within_seconds: float) -> AsyncRetrying:
    """Attempts at a request until one is not interrupted, or the next would start too late."""
    return repeats_until(sleep, stop_before_delay(within_seconds))


def repeats_until(sleep: Callable[[float], Awaitable[None]], stop: StopBaseT) -> AsyncRetrying:
    """Attempts until one is not interrupted, or `stop` says so; then the last `Interrupted` is raised."""
    return AsyncRetrying(sleep=sleep, stop=stop, wait=_pause, retry=retry_if_exception_type(Interrupted), reraise=True)


def _pause(state: RetryCallState) -> float:
    """Back off, and for as long as the other side asked."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_seconds if isinstance(error, Interrupted) else None
    return max(_BACKOFF(state), asked or 0.0)
