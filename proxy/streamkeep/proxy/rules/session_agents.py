"""A session's agents: what a request says of one, what is kept of them, and what others may see.

All of it is secret until it is asked for what is not: headers and bodies hold vendors' keys, and so may an endpoint's query.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args
from urllib.parse import urlsplit, urlunsplit

from streamkeep.proxy.rules.access import Principal
from streamkeep.proxy.rules.headers import ANY_HEADER, HeadersTooLarge, InvalidHeader, forwarded_headers
from streamkeep.proxy.rules.session_bodies import Fields, bad, needed
from streamkeep.sessions.agents import AgentFormat
from streamkeep.sessions.turns import Listening
from streamkeep.sessions.views import Agent
from streamkeep.storage import MAX_AGENTS_BYTES

Triggers = Literal["all", "user-messages"]

MAX_AGENTS = 50

_MAX_URL_CHARACTERS = 2048
_MAX_HEADERS = 50
_MAX_TURNS = 1000
_MASK = "…"
_FORMATS: Mapping[str, AgentFormat] = {name: name for name in get_args(AgentFormat)}
_TRIGGERS: Mapping[str, Triggers] = {"all": "all", "user-messages": "user-messages"}
_METHODS = {"POST": "POST"}


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent as somebody described it. `holder` and the limits are those of that somebody, and hold for the agent's calls."""

    id: str
    endpoint: str = field(repr=False)
    name: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    triggers: Triggers | None = None
    body_template: Mapping[str, Any] = field(default_factory=dict, repr=False)
    format: AgentFormat | None = None
    max_turns: int | None = None
    holder: str | None = None
    max_running: int | None = None
    max_per_minute: int | None = None

    @classmethod
    def parse(cls, value: dict[str, Any]) -> AgentSpec:
        """An agent out of a request. Raises: BadRequest."""
        fields = Fields(value)
        fields.choice("method", _METHODS)
        return cls(
            id=needed(fields.id("id"), "an agent's id"),
            endpoint=_endpoint(needed(fields.text("endpoint", at_most=_MAX_URL_CHARACTERS), "an agent's endpoint")),
            name=fields.label("name"),
            headers=_headers(fields.object("headers") or {}),
            triggers=fields.choice("triggers", _TRIGGERS),
            body_template=fields.object("bodyTemplate") or {},
            format=fields.choice("format", _FORMATS),
            max_turns=fields.number("maxTurns", at_most=_MAX_TURNS),
        )

    def of(self, principal: Principal) -> AgentSpec:
        """The same, called in somebody's name."""
        limits = principal.limits
        return replace(
            self, holder=principal.holder, max_running=limits.max_running, max_per_minute=limits.max_per_minute
        )

    @property
    def shown_endpoint(self) -> str:
        """The endpoint without what may be secret in it."""
        url = urlsplit(self.endpoint)
        return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))

    def public(self) -> Agent:
        """What stands in the session's stream."""
        return Agent(self.id, self.name, self.shown_endpoint, self.triggers)

    def shown(self) -> dict[str, Any]:
        """What whoever asks is told: the names of headers, and of the body's fields."""
        optional = {"name": self.name, "triggers": self.triggers, "format": self.format, "maxTurns": self.max_turns}
        return {
            "id": self.id,
            "endpoint": self.shown_endpoint,
            "method": "POST",
            **{name: value for name, value in optional.items() if value is not None},
            "headers": {name: _MASK for name, _ in self.headers},
            "bodyTemplate": dict.fromkeys(self.body_template, _MASK),
        }

    def listening(self, spec_id: str | None = None) -> Listening:
        return Listening(self.id, self.name, self.triggers, spec_id, self.max_turns)

    def kept(self) -> dict[str, Any]:
        """All of it, as it is stored."""
        return {
            "id": self.id,
            "endpoint": self.endpoint,
            "name": self.name,
            "headers": list(self.headers),
            "triggers": self.triggers,
            "bodyTemplate": dict(self.body_template),
            "format": self.format,
            "maxTurns": self.max_turns,
            "holder": self.holder,
            "maxRunning": self.max_running,
            "maxPerMinute": self.max_per_minute,
        }

    @classmethod
    def load(cls, kept: Mapping[str, Any]) -> AgentSpec:
        return cls(
            id=kept["id"],
            endpoint=kept["endpoint"],
            name=kept["name"],
            headers=tuple((name, value) for name, value in kept["headers"]),
            triggers=kept["triggers"],
            body_template=kept["bodyTemplate"],
            format=kept["format"],
            max_turns=kept["maxTurns"],
            holder=kept["holder"],
            max_running=kept["maxRunning"],
            max_per_minute=kept["maxPerMinute"],
        )


@dataclass(frozen=True, slots=True)
class AgentBook:
    """The agents that a session can call: the registered ones, and by their `spec_id` those that came with a message and
    may have to go on, of which the last ones are kept."""

    registered: tuple[AgentSpec, ...] = ()
    inline: tuple[tuple[str, AgentSpec], ...] = ()

    @classmethod
    def load(cls, document: bytes) -> AgentBook:
        """What `dump` made, or of nothing an empty book."""
        if not document:
            return cls()
        kept = json.loads(document)
        return cls(
            tuple(map(AgentSpec.load, kept["registered"])),
            tuple((spec_id, AgentSpec.load(spec)) for spec_id, spec in kept["inline"]),
        )

    def dump(self) -> bytes:
        kept = {
            "registered": [spec.kept() for spec in self.registered],
            "inline": [[spec_id, spec.kept()] for spec_id, spec in self.inline],
        }
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()

    def with_registered(self, specs: Iterable[AgentSpec]) -> AgentBook:
        """These take part too, in the place of those of the same id. Raises: BadRequest."""
        found = {spec.id: spec for spec in (*self.registered, *specs)}
        if len(found) > MAX_AGENTS:
            raise bad(f"a session may have up to {MAX_AGENTS} agents", "too_many_agents")
        return replace(self, registered=tuple(found.values()))._that_fits(least=0)

    def without(self, agent_id: str) -> AgentBook:
        return replace(self, registered=tuple(spec for spec in self.registered if spec.id != agent_id))

    def with_inline(self, spec: AgentSpec, new_id: str) -> AgentBook:
        """This one came with a message; the same again keeps its id. Raises: BadRequest."""
        spec_id = self.spec_id(spec) or new_id
        others = [one for one in self.inline if one[0] != spec_id]
        return replace(self, inline=(*others, (spec_id, spec))[-MAX_AGENTS:])._that_fits(least=1)

    def _that_fits(self, *, least: int) -> AgentBook:
        """This book, without the oldest of those that came with messages where it would be too large."""
        excess, inline = len(self.dump()) - MAX_AGENTS_BYTES, self.inline
        while excess > 0:
            if len(inline) <= least:
                raise bad(f"a session's agents may take {MAX_AGENTS_BYTES} bytes together", "agents_too_large")
            oldest, inline = AgentBook(inline=inline[:1]), inline[1:]
            # With the comma behind it.
            excess -= len(oldest.dump()) - len(AgentBook().dump()) + bool(inline)
        return replace(self, inline=inline)

    def spec_id(self, spec: AgentSpec) -> str | None:
        """Under which id an agent that came with a message is kept."""
        return next((spec_id for spec_id, known in self.inline if known == spec), None)

    def find(self, agent_id: str, spec_id: str | None) -> AgentSpec | None:
        """Whom a turn calls."""
        if spec_id is not None:
            return dict(self.inline).get(spec_id)
        return next((spec for spec in self.registered if spec.id == agent_id), None)

    @property
    def listening(self) -> list[Listening]:
        """Those who are registered."""
        return [spec.listening() for spec in self.registered]

    @property
    def callable(self) -> list[Listening]:
        """All of them."""
        return [*self.listening, *(spec.listening(spec_id) for spec_id, spec in self.inline)]


def _endpoint(text: str) -> str:
    """A URL that can be called; whether it may be is asked elsewhere. Raises: BadRequest."""
    try:
        url = urlsplit(text)
    except ValueError:
        raise bad("an agent's endpoint is a URL", "invalid_agent") from None
    if url.scheme not in ("http", "https") or not url.hostname or not text.isprintable():
        raise bad("an agent's endpoint is a URL that begins with http:// or https://", "invalid_agent")
    return text


def _headers(values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Raises: BadRequest."""
    if len(values) > _MAX_HEADERS or not all(isinstance(value, str) for value in values.values()):
        raise bad(f"headers is an object of up to {_MAX_HEADERS} texts", "invalid_agent")
    for name, value in values.items():
        try:
            is_sent = forwarded_headers([(name.lower().encode("ascii"), value.encode("latin-1"))], ANY_HEADER)
        except (UnicodeEncodeError, InvalidHeader, HeadersTooLarge):
            # Neither the name nor the value is told: one of them may be a secret in the wrong place.
            raise bad("one of an agent's headers cannot be sent", "invalid_agent") from None
        if not is_sent:
            raise bad(f"the header {name!r} is not for agents to be sent", "invalid_agent")
    return tuple(values.items())
