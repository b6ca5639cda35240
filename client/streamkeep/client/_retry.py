"""When the client tries again, and when it gives up: tenacity policies over the channel's own clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential
from tenacity.stop import StopBaseT

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the client goes on trying, in seconds.

    `send_seconds` bounds the repeats of a request that was not answered. A body is given up when the proxy could not be
    heard for `silence_seconds`, which waiting for a slow upstream on a healthy connection is not, or after
    `max_reconnects`. A connection that gives nothing, not even a heartbeat, for `stall_seconds` is replaced. Pauses
    between attempts grow up to `pause_seconds`, or as long as the proxy asks for.
    """

    send_seconds: float = 30.0
    silence_seconds: float = 120.0
    stall_seconds: float = 45.0
    max_reconnects: int = 1000
    pause_seconds: float = 5.0


class Interrupted(Exception):
    """An attempt came to nothing, and another may not. Never leaves the core; `__cause__` is what happened."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def repeats(patience: Patience, sleep: Sleep, stop: StopBaseT) -> AsyncRetrying:
    """Attempts until one is not interrupted, or `stop` says so; then the last `Interrupted` is raised."""
    # Each pause is drawn anew, so that readers that were cut off together do not come back together.
    backoff = wait_random_exponential(multiplier=0.2, max=patience.pause_seconds)

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked_seconds = error.retry_after_seconds if isinstance(error, Interrupted) else None
        return max(backoff(state), asked_seconds or 0.0)

    return AsyncRetrying(sleep=sleep, stop=stop, wait=pause, retry=retry_if_exception_type(Interrupted), reraise=True)
