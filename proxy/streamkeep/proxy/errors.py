"""One table: what went wrong → status, code, message, headers. Routes raise, and nothing else decides a status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamkeep.proxy.rules.headers import InvalidHeader
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.storage import (
    FingerprintMismatch,
    GenerationNotFound,
    InvalidOffset,
    StoreUnavailable,
    StreamNotFound,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error answer of ours: the status, `{"error": code, "message": …}` with `extra` fields, and headers."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)

    def body(self) -> dict[str, object]:
        return {"error": self.code, "message": self.message, **self.extra}


class ApiError(Exception):
    """A request ends with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem(
    status: int, code: str, message: str, *, retry_after: int | None = None, extra: Mapping[str, object] | None = None
) -> ApiError:
    """An `ApiError` to raise; `retry_after` is seconds."""
    headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
    return ApiError(Problem(status, code, message, headers, extra or {}))


def not_found() -> ApiError:
    return problem(404, "not_found", "there is no such generation")


def gone() -> ApiError:
    return problem(410, "gone", "the generation ended longer ago than its data are kept")


def problem_of(exc: BaseException) -> Problem | None:
    """The answer that an exception stands for; None for what nobody foresaw."""
    match exc:
        case ApiError():
            return exc.problem
        case BadRequest():
            return Problem(400, exc.code, str(exc))
        case InvalidHeader():
            return Problem(400, "invalid_header", str(exc))
        case InvalidOffset():
            return Problem(400, "invalid_offset", str(exc))
        case FingerprintMismatch():
            return Problem(
                409, "request_conflict", "these ids were used before for a request with another method, URL or body"
            )
        case StreamNotFound() | GenerationNotFound():
            return not_found().problem
        case StoreUnavailable():
            return Problem(
                503, "storage_unavailable", "the database does not answer; try again", (("Retry-After", "1"),)
            )
        case _:
            return None
