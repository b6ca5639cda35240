"""What a request for a listing may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamkeep.proxy.rules.access import Principal
from streamkeep.proxy.rules.wire import BadRequest, check_request_id, check_session_id, check_tenant
from streamkeep.storage import State, Wanted
from streamkeep.storage.rules.generations import LIVE

MAX_LIMIT = 500
_DEFAULT_LIMIT = 100
_MAX_TEXT_CHARACTERS = 200
_LIVE = "live"
_MAX_PATH_CHARACTERS = 1024
_STREAM_PARAMETERS = frozenset({"prefix", "after", "limit"})
_PARAMETERS = frozenset({"tenant", "session", "request", "state", "q", "before", "limit"})


@dataclass(frozen=True, slots=True)
class ListingQuery:
    """One page of a listing, `limit` rows at most."""

    wanted: Wanted
    before: int | None
    limit: int

    @classmethod
    def parse(cls, parameters: Mapping[str, str], principal: Principal) -> ListingQuery:
        """Read the query of a listing. An operator sees all tenants, everybody else their own. Raises: BadRequest."""
        unknown = parameters.keys() - _PARAMETERS
        if unknown:
            raise _bad(f"a listing takes {', '.join(sorted(_PARAMETERS))}")
        session_id, request_id = parameters.get("session"), parameters.get("request")
        wanted = Wanted(
            tenant=_tenant(parameters.get("tenant"), principal),
            session_id=None if session_id is None else check_session_id(session_id),
            request_id=None if request_id is None else check_request_id(request_id),
            states=_states(parameters.get("state")),
            text=_text(parameters.get("q", "")),
        )
        return cls(wanted, _number(parameters.get("before"), "before", 2**63 - 1), _limit(parameters.get("limit")))


@dataclass(frozen=True, slots=True)
class StreamQuery:
    """One page of the streams whose paths begin with `prefix`, from behind a path on."""

    prefix: str
    after: str
    limit: int

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> StreamQuery:
        """Raises: BadRequest."""
        if not parameters.keys() <= _STREAM_PARAMETERS:
            raise _bad(f"a listing of streams takes {', '.join(sorted(_STREAM_PARAMETERS))}")
        prefix, after = (_path(parameters.get(name, ""), name) for name in ("prefix", "after"))
        return cls(prefix, after, _limit(parameters.get("limit")))


def _path(given: str, name: str) -> str:
    if len(given) > _MAX_PATH_CHARACTERS or "\0" in given:
        raise _bad(f"{name} is a path of {_MAX_PATH_CHARACTERS} characters at most")
    return given


def _tenant(given: str | None, principal: Principal) -> str | None:
    if principal.is_operator:
        return None if given is None else check_tenant(given)
    if given not in (None, principal.tenant):
        raise _bad("only an operator's key lists other tenants")
    return principal.tenant


def _states(given: str | None) -> frozenset[State] | None:
    """`live`, or states with commas between them."""
    if given is None:
        return None
    names = set(given.split(","))
    if not names <= {_LIVE, *(state.value for state in State)}:
        raise _bad(f"state is {_LIVE}, or one or more of {', '.join(State)}")
    found = frozenset(State(name) for name in names - {_LIVE})
    return found | LIVE if _LIVE in names else found


def _text(given: str) -> str:
    if len(given) > _MAX_TEXT_CHARACTERS or not given.isprintable():
        raise _bad(f"q is a text of {_MAX_TEXT_CHARACTERS} characters at most")
    return given


def _limit(given: str | None) -> int:
    found = _number(given, "limit", MAX_LIMIT)
    return _DEFAULT_LIMIT if found is None else found


def _number(given: str | None, name: str, at_most: int) -> int | None:
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 19 and 1 <= int(given) <= at_most):
        raise _bad(f"{name} is a number from 1 to {at_most}")
    return int(given)


def _bad(message: str) -> BadRequest:
    return BadRequest("invalid_parameter", message)
