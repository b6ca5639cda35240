"""Which agents are called, and when: one decision for those who write messages and for those who call agents.

A person's message calls every agent that takes part, and the one that comes with it. An agent's finished answer calls the
other agents that listen to all. When all tool calls of an answer are settled, by people or their tools, its own agent goes on.

A turn's ids are made of what it answers and of who answers, so whoever decides the same decides on the same turn: it is
written, and its agent called, once. `depth` counts turns from a person's message on, tool loops too. Agents that call each other
branch out, so none is called oftener for one message than the limit on depth, either. A turn beyond a limit is refused: it is
written together with the error that ends it, and wakes nobody.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from streamkeep.sessions.events import Author, Event, answer_end, turn_event
from streamkeep.sessions.fold import SessionFold
from streamkeep.sessions.views import Place, Turn, TurnKind

TURN_LIMIT = "turn_limit"

_NOWHERE = Place(0, "-1")


@dataclass(frozen=True, slots=True)
class Listening:
    """An agent that may be called. `spec_id` is None for those who are registered; `max_turns` bounds the depth of its own
    turns further than the service does."""

    id: str
    name: str | None = None
    triggers: Literal["all", "user-messages"] | None = None
    spec_id: str | None = None
    max_turns: int | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """Turns that are to be written, and of these the ones that go too deep."""

    turns: tuple[Turn, ...] = ()
    refused: tuple[Turn, ...] = ()

    def events(self, agents: Iterable[Listening] = ()) -> list[Event]:
        """The turns, and the ends of those that are refused."""
        names = {agent.id: agent.name for agent in agents}
        written: list[Event] = []
        for turn in self.turns:
            written.append(turn_event(turn))
            if turn in self.refused:
                error = {"message": "too many turns of agents follow one message", "code": TURN_LIMIT}
                author = Author(turn.agent_id, names.get(turn.agent_id))
                written += answer_end(turn, 0, "error", author=author, at=turn.created_at, error=error)
        return written


def turns_after_message(
    message_id: str, agents: Sequence[Listening], *, max_depth: int, at: str, nonce: str = ""
) -> Decided:
    """A person's message calls these agents, each once; with a `nonce` once more, for an answer in place of another."""
    kind: TurnKind = "regenerate" if nonce else "message"
    return _decided([_turn(kind, message_id, one, 1, at, nonce) for one in _each_once(agents)], agents, max_depth)


def turns_after_answers(
    fold: SessionFold,
    message_id: str,
    agents: Sequence[Listening],
    *,
    max_depth: int,
    at: str,
    answering: str | None = None,
) -> Decided:
    """The agent of a message whose tool calls are all settled goes on, unless it was called for that already.

    `agents` are those whom the service can call, those that came with a message by their `spec_id` too. The call of the id
    `answering` counts as settled: what settles it is written together with the turn.
    """
    before = fold.turn_of(message_id)
    if (
        before is None
        or not fold.is_answered(message_id, answering=answering)
        or (message_id, before.agent_id) in _called(fold)
    ):
        return Decided()
    return _gone_on([before], agents, max_depth, at)


def turns_due(fold: SessionFold, agents: Sequence[Listening], *, max_depth: int, at: str) -> Decided:
    """What `turns_after_answers` says of all messages together: for whoever takes over from somebody who could not write it,
    or where two answers at once each left it to the other."""
    called = _called(fold)
    before = [
        turn
        for turn in fold.turns
        if (turn.message_id, turn.agent_id) not in called and fold.is_answered(turn.message_id)
    ]
    return _gone_on(before, agents, max_depth, at)


def turn_again(turn: Turn, agents: Sequence[Listening], *, max_depth: int, at: str, nonce: str) -> Decided:
    """The same agent answers the same message once more."""
    found = [one for one in agents if _is_of(one, turn)][:1]
    return _decided([_turn("regenerate", turn.cause_id, one, turn.depth, at, nonce) for one in found], found, max_depth)


def turns_after_agent(
    fold: SessionFold, turn: Turn, agents: Sequence[Listening], *, max_depth: int, at: str
) -> Decided:
    """The other agents that listen to all answer an agent's answer: a whole one, none of whose tool calls is open. Whoever
    ends it knows, and writes this together with its end."""
    found = [one for one in _each_once(agents) if one.triggers == "all" and one.spec_id is None]
    found = [one for one in found if one.id != turn.agent_id]
    if not found:
        return Decided()
    limits = _limits(found, max_depth)
    calls, told = _calls_behind(fold, turn, limits)
    turns = [_turn("agent", turn.message_id, one, turn.depth + 1, at) for one in found]
    refused = [one for one in turns if one.depth > limits[one.agent_id] or calls[one.agent_id] >= limits[one.agent_id]]
    # One that was refused already is not told so again by every branch.
    refused_again = [one for one in refused if one.agent_id in told]
    return Decided(
        tuple(one for one in turns if one not in refused_again),
        tuple(one for one in refused if one not in refused_again),
    )


def _calls_behind(fold: SessionFold, turn: Turn, limits: Mapping[str, int]) -> tuple[Counter[str], set[str]]:
    """How often each of these agents was called for the person's message that a turn goes back to, and which were refused."""
    before = turn
    while (cause := fold.turn_of(before.cause_id)) is not None and cause.depth < before.depth:
        before = cause
    calls, refused, chain = Counter[str](), set[str](), {before.cause_id}
    for one in fold.turns:
        if one.cause_id not in chain:
            continue
        chain.add(one.message_id)
        limit = limits.get(one.agent_id, 0)
        if one.depth > limit or calls[one.agent_id] >= limit:
            refused.add(one.agent_id)
        else:
            calls[one.agent_id] += 1
    return calls, refused


def _called(fold: SessionFold) -> set[tuple[str, str]]:
    """Which agents were called for which messages."""
    return {(turn.cause_id, turn.agent_id) for turn in fold.turns}


def _is_of(agent: Listening, turn: Turn) -> bool:
    return (agent.id, agent.spec_id) == (turn.agent_id, turn.spec_id)


def _gone_on(before: Iterable[Turn], agents: Sequence[Listening], max_depth: int, at: str) -> Decided:
    pairs = [(turn, one) for turn in before for one in agents if _is_of(one, turn)]
    turns = [_turn("answers", turn.message_id, one, turn.depth + 1, at) for turn, one in pairs]
    return _decided(turns, [one for _, one in pairs], max_depth)


def _decided(turns: Sequence[Turn], agents: Iterable[Listening], max_depth: int) -> Decided:
    limits = _limits(agents, max_depth)
    return Decided(tuple(turns), tuple(turn for turn in turns if turn.depth > limits[turn.agent_id]))


def _limits(agents: Iterable[Listening], max_depth: int) -> dict[str, int]:
    return {agent.id: min(agent.max_turns or max_depth, max_depth) for agent in agents}


def _turn(kind: TurnKind, cause_id: str, agent: Listening, depth: int, at: str, nonce: str = "") -> Turn:
    # Lengths are told, so that no two sets of texts make one.
    named = "".join(f"{len(text)}:{text}" for text in (kind, cause_id, agent.id, nonce))
    digest = hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Turn(
        id=f"turn-{digest}",
        agent_id=agent.id,
        message_id=f"answer-{digest}",
        cause_id=cause_id,
        kind=kind,
        depth=depth,
        created_at=at,
        start=_NOWHERE,
        spec_id=agent.spec_id,
    )


def _each_once(agents: Iterable[Listening]) -> list[Listening]:
    """By their ids; the last one counts, so that the agent that comes with a message takes its registered namesake's place."""
    return list({agent.id: agent for agent in agents}.values())
