"""What requests about durable sessions may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from streamkeep.proxy.rules.access import Principal
from streamkeep.proxy.rules.session_agents import MAX_AGENTS, AgentSpec
from streamkeep.proxy.rules.session_bodies import Fields, bad, check_actor_id, needed
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.sessions.events import Author
from streamkeep.sessions.views import Role, ToolResult

MAX_PAGE = 500

_MAX_PARTS = 100
_MAX_SEARCH_CHARACTERS = 200
_DEFAULT_PAGE = 100
_ROLES: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
_STATUSES: Mapping[str, Literal["online", "offline", "away"]] = {
    "online": "online",
    "offline": "offline",
    "away": "away",
}
_ACTOR_TYPES: Mapping[str, Literal["user", "agent"]] = {"user": "user", "agent": "agent"}

Part = dict[str, Any]


class ForeignActor(Exception):
    """Somebody speaks in another one's name."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Whoever writes. Who `is_named` is the same when the request is repeated."""

    author: Author
    is_named: bool


def actor_of(fields: Fields, header: str | None, principal: Principal, new_id: str) -> Actor:
    """Who writes: whom the body names, or the header, or whose token it is; else somebody new.

    Raises:
        BadRequest: that cannot be an actor's id.
        ForeignActor: the token is another one's. Operators may speak for everybody.
    """
    named = fields.actor_id() or (None if header is None else check_actor_id(header))
    actor_id = own_actor_id(named, principal)
    return Actor(Author(actor_id or new_id, fields.label("actorName")), is_named=actor_id is not None)


def own_actor_id(named: str | None, principal: Principal) -> str | None:
    """Raises: ForeignActor."""
    subject = None if principal.is_operator else principal.subject
    if subject is not None and named not in (None, subject):
        raise ForeignActor
    return named or subject


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that is to be there."""

    name: str | None

    @classmethod
    def parse(cls, body: bytes) -> NewSession:
        """Raises: BadRequest."""
        return cls(Fields.parse(body).label("name"))


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to be written. `message_id` None: a new one; `agent` comes with it and is called in any case."""

    fields: Fields
    parts: tuple[Part, ...]
    message_id: str | None
    role: Role
    agent: AgentSpec | None
    txid: str | None

    @classmethod
    def parse(cls, body: bytes) -> NewMessage:
        """Raises: BadRequest."""
        fields = Fields.parse(body)
        fields.choice("actorType", _ACTOR_TYPES)
        agent = fields.object("agent")
        return cls(
            fields,
            needed(_parts(fields), "content"),
            fields.id("messageId"),
            fields.choice("role", _ROLES) or "user",
            None if agent is None else AgentSpec.parse(agent),
            fields.txid(),
        )


@dataclass(frozen=True, slots=True)
class Regeneration:
    """Answers from a message on are to be written anew; with `parts` the message itself as well, as `message_id`."""

    fields: Fields
    from_message_id: str
    parts: tuple[Part, ...] | None
    message_id: str | None
    agent: AgentSpec | None
    txid: str | None

    @classmethod
    def parse(cls, body: bytes) -> Regeneration:
        """Raises: BadRequest."""
        fields = Fields.parse(body)
        agent = fields.object("agent")
        return cls(
            fields,
            needed(fields.call_id("fromMessageId"), "fromMessageId"),
            _parts(fields),
            fields.id("messageId"),
            None if agent is None else AgentSpec.parse(agent),
            fields.txid(),
        )


@dataclass(frozen=True, slots=True)
class NewToolResult:
    """What a client's tool gave. `message_id` tells calls of one id apart."""

    fields: Fields
    tool_call_id: str
    output: Any
    error: str | None
    message_id: str | None
    txid: str | None

    @classmethod
    def parse(cls, body: bytes) -> NewToolResult:
        """Raises: BadRequest."""
        fields = Fields.parse(body)
        error = fields.text("error")
        return cls(
            fields,
            needed(fields.call_id("toolCallId"), "toolCallId"),
            fields.any("output") if error is None else fields.optional("output"),
            error,
            fields.call_id("messageId"),
            fields.txid(),
        )

    def is_told_by(self, result: ToolResult) -> bool:
        """Whether a result that stands there says the same."""
        return (result.output, result.error) == (self.output, self.error)


@dataclass(frozen=True, slots=True)
class NewApproval:
    """Somebody's answer to an approval."""

    fields: Fields
    approved: bool
    txid: str | None

    @classmethod
    def parse(cls, body: bytes) -> NewApproval:
        """Raises: BadRequest."""
        fields = Fields.parse(body)
        approved = fields.flag("approved")
        if approved is None:
            raise bad("approved is missing")
        return cls(fields, approved, fields.txid())


@dataclass(frozen=True, slots=True)
class NewPresence:
    """What an actor says of itself."""

    status: Literal["online", "offline", "away"]
    name: str | None
    actor_type: Literal["user", "agent"]
    typing: bool
    txid: str | None

    @classmethod
    def parse(cls, body: bytes) -> NewPresence:
        """Raises: BadRequest."""
        fields = Fields.parse(body)
        return cls(
            needed(fields.choice("status", _STATUSES), "status"),
            fields.label("name"),
            fields.choice("actorType", _ACTOR_TYPES) or "user",
            bool(fields.flag("typing")),
            fields.txid(),
        )


@dataclass(frozen=True, slots=True)
class NewAgents:
    """Agents that are to take part."""

    agents: tuple[AgentSpec, ...]
    txid: str | None

    @classmethod
    def parse(cls, body: bytes) -> NewAgents:
        """Raises: BadRequest."""
        fields = Fields.parse(body)
        agents = needed(fields.objects("agents", at_most=MAX_AGENTS), "agents")
        if not agents:
            raise bad("agents is empty")
        return cls(tuple(map(AgentSpec.parse, agents)), fields.txid())


@dataclass(frozen=True, slots=True)
class NewFork:
    """A session that begins as another one, up to the end of a message, or with None of all that there is."""

    at_message_id: str | None
    session_id: str | None
    name: str | None

    @classmethod
    def parse(cls, body: bytes) -> NewFork:
        """Raises: BadRequest."""
        fields = Fields.parse(body)
        return cls(fields.call_id("atMessageId"), fields.id("newSessionId"), fields.label("name"))


def stop_request(body: bytes) -> str | None:
    """Which message is to be stopped; None: all of them. Raises: BadRequest."""
    return Fields.parse(body).call_id("messageId")


def new_name(body: bytes) -> tuple[str | None, str | None]:
    """A session's new name, None for none, and the write's own id. Raises: BadRequest."""
    fields = Fields.parse(body)
    fields.any("name")
    return fields.label("name"), fields.txid()


@dataclass(frozen=True, slots=True)
class SessionsQuery:
    """One page of the sessions whose ids or names hold a text."""

    search: str
    before: int | None
    limit: int

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> SessionsQuery:
        """Raises: BadRequest."""
        _check_known(parameters, "search", "before", "limit")
        search = parameters.get("search", "")
        if len(search) > _MAX_SEARCH_CHARACTERS or not search.isprintable():
            raise _invalid(f"search is a text of {_MAX_SEARCH_CHARACTERS} characters at most")
        return cls(search, _number(parameters, "before", 2**63 - 1), _limit(parameters))


@dataclass(frozen=True, slots=True)
class MessagesQuery:
    """One page of messages: those that stand before one, or the last ones."""

    before: str | None
    limit: int

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> MessagesQuery:
        """Raises: BadRequest."""
        _check_known(parameters, "before", "limit")
        return cls(parameters.get("before"), _limit(parameters))


def _parts(fields: Fields) -> tuple[Part, ...] | None:
    """The content of a message: a text, or parts of which each tells its type. Raises: BadRequest."""
    parts = fields.objects("parts", at_most=_MAX_PARTS)
    if parts is None:
        content = fields.text("content")
        return None if content is None else ({"type": "text", "content": content},)
    if not parts or not all(isinstance(part.get("type"), str) for part in parts):
        raise bad("parts is a list of objects, each with a type")
    return tuple(parts)


def _check_known(parameters: Mapping[str, str], *names: str) -> None:
    if not parameters.keys() <= set(names):
        raise _invalid(f"the parameters are {', '.join(names)}")


def _limit(parameters: Mapping[str, str]) -> int:
    return _number(parameters, "limit", MAX_PAGE) or _DEFAULT_PAGE


def _number(parameters: Mapping[str, str], name: str, at_most: int) -> int | None:
    given = parameters.get(name)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 19 and 1 <= int(given) <= at_most):
        raise _invalid(f"{name} is a number from 1 to {at_most}")
    return int(given)


def _invalid(message: str) -> BadRequest:
    return BadRequest("invalid_parameter", message)
