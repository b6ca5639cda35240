"""Which agents are called, and when; the same decision gives the same turns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from streamkeep.sessions import SessionFold
from streamkeep.sessions.events import turn_event
from streamkeep.sessions.turns import (
    TURN_LIMIT,
    Decided,
    Listening,
    turn_again,
    turns_after_agent,
    turns_after_answers,
    turns_after_message,
    turns_due,
)
from tests.sessions.session_rows import Author, Row, answer, result, said, turn

AT = "2030-01-01T00:00:00.000Z"
HELPER = Listening("helper", "Helper")
EAGER = Listening("eager", triggers="all")
INLINE = Listening("inline", spec_id="x")
EVERYBODY = [HELPER, EAGER, INLINE]


def folded(*rows: Row) -> SessionFold:
    fold = SessionFold()
    fold.apply(rows, "1")
    return fold


def asked(turn_id: str = "t", **fields: Any) -> list[Row]:
    return [said("u", "Hi"), turn(turn_id, "a", **{"agent_id": "helper", **fields})]


def agents_of(decided: Decided) -> list[str]:
    return [one.agent_id for one in decided.turns]


def test_a_message_calls_all_agents_once_and_the_one_that_comes_with_it() -> None:
    namesake = Listening("helper", spec_id="y")
    decided = turns_after_message("u", [*EVERYBODY, namesake], max_depth=10, at=AT)
    assert [(one.agent_id, one.kind, one.cause_id, one.depth, one.spec_id) for one in decided.turns] == [
        ("helper", "message", "u", 1, "y"),
        ("eager", "message", "u", 1, None),
        ("inline", "message", "u", 1, "x"),
    ]
    assert len({name for one in decided.turns for name in (one.id, one.message_id)}) == 6
    assert turns_after_message("u", [], max_depth=10, at=AT) == Decided()


def test_whoever_decides_the_same_decides_on_the_same_turn() -> None:
    first, second = (turns_after_message("u", [HELPER], max_depth=10, at=at).turns[0] for at in (AT, "later"))
    assert (first.id, first.message_id) == (second.id, second.message_id)
    other = turns_after_message("u", [HELPER], max_depth=10, at=AT, nonce="again").turns[0]
    assert (other.kind, other.id != first.id, other.message_id != first.message_id) == ("regenerate", True, True)


def test_the_written_turns_are_pending_in_the_fold() -> None:
    decided = turns_after_message("u", EVERYBODY, max_depth=10, at=AT)
    fold = folded(said("u", "Hi"), *decided.events(EVERYBODY))
    assert [one.id for one in fold.pending_turns] == [one.id for one in decided.turns]


def test_a_finished_answer_wakes_the_others_that_listen_to_all() -> None:
    fold = folded(*asked())
    [before] = fold.turns
    agents = [*EVERYBODY, Listening("inline-2", triggers="all", spec_id="z")]
    decided = turns_after_agent(fold, before, agents, max_depth=10, at=AT)
    assert [(one.agent_id, one.kind, one.cause_id, one.depth) for one in decided.turns] == [("eager", "agent", "a", 2)]
    assert turns_after_agent(fold, before, agents, max_depth=10, at="later").turns[0].id == decided.turns[0].id
    assert turns_after_agent(fold, decided.turns[0], agents, max_depth=10, at=AT) == Decided(), "nobody answers himself"


def test_the_agent_goes_on_when_the_last_open_call_is_answered() -> None:
    author = Author("a")
    calls = [
        row
        for call_id in ("one", "two")
        for row in (author.call(call_id, "{}"), author.row("tool-input-available", toolCallId=call_id, input={}))
    ]
    fold = folded(*asked(depth=3), *calls, author.done("tool_calls"), result("one", 1))
    assert turns_after_answers(fold, "a", EVERYBODY, max_depth=10, at=AT) == Decided()
    fold.apply([result("two", 2)], "2")
    decided = turns_after_answers(fold, "a", EVERYBODY, max_depth=10, at=AT)
    assert [(one.agent_id, one.kind, one.cause_id, one.depth) for one in decided.turns] == [
        ("helper", "answers", "a", 4)
    ]
    assert turns_due(fold, EVERYBODY, max_depth=10, at=AT) == decided
    fold.apply(decided.events(), "3")
    for settled in (
        turns_after_answers(fold, "a", EVERYBODY, max_depth=10, at=AT),
        turns_due(fold, EVERYBODY, max_depth=10, at=AT),
    ):
        assert settled == Decided()


@pytest.mark.parametrize("approved", [True, False])
def test_an_answered_approval_wakes_the_agent_and_a_clients_tool_is_waited_for(approved: bool) -> None:
    author = Author("a")
    rows = [author.call("call", "{}"), author.ask("call", "ok?"), author.done("tool_calls"), answer("ok?", approved)]
    assert agents_of(turns_after_answers(folded(*asked(), *rows), "a", EVERYBODY, max_depth=10, at=AT)) == ["helper"]
    author = Author("a")
    offered = author.row("tool-input-available", toolCallId="call", input={})
    rows = [author.call("call", "{}"), offered, author.ask("call", "ok?"), author.done("tool_calls")]
    fold = folded(*asked(), *rows, answer("ok?", approved))
    assert agents_of(turns_after_answers(fold, "a", EVERYBODY, max_depth=10, at=AT)) == ([] if approved else ["helper"])


def test_calls_that_the_agent_itself_ran_wake_nobody() -> None:
    author = Author("a")
    rows = [author.call("call", "{}"), author.row("tool_result", toolCallId="call", content="1"), author.done()]
    fold = folded(*asked(), *rows)
    assert turns_after_answers(fold, "a", EVERYBODY, max_depth=10, at=AT) == Decided()


def test_an_agent_that_came_with_a_message_goes_on_by_its_own_spec() -> None:
    author = Author("a")
    rows = [*asked(agent_id="inline", specId="x"), author.call("call", "{}"), author.done(), result("call", 1)]
    others = [Listening("inline"), Listening("inline", spec_id="y")]
    [one] = turns_after_answers(folded(*rows), "a", [*others, INLINE], max_depth=10, at=AT).turns
    assert one.spec_id == "x"
    assert turns_after_answers(folded(*rows), "a", others, max_depth=10, at=AT) == Decided()


@pytest.mark.parametrize(("max_depth", "max_turns"), [(1, None), (10, 1)])
def test_a_turn_that_goes_too_deep_is_written_with_its_error_and_wakes_nobody(
    max_depth: int, max_turns: int | None
) -> None:
    author = Author("a")
    eager = Listening("eager", "Eager", triggers="all", max_turns=max_turns)
    fold = folded(*asked(), author.content("x"), author.done())
    decided = turns_after_agent(fold, fold.turns[0], [eager], max_depth=max_depth, at=AT)
    assert decided.refused == decided.turns
    fold.apply(decided.events([eager]), "2")
    refused = fold.messages[-1]
    assert (refused.ended_by, refused.actor_name, fold.pending_turns) == ("error", "Eager", ())
    assert TURN_LIMIT in str(decided.events([eager])[2])


def test_a_turn_again_is_the_same_call_with_another_answer() -> None:
    fold = folded(*asked(kind="agent", depth=4))
    [one] = turn_again(fold.turns[0], EVERYBODY, max_depth=10, at=AT, nonce="n").turns
    assert (one.agent_id, one.cause_id, one.kind, one.depth) == ("helper", "u", "regenerate", 4)
    assert one.message_id != "a"
    assert turn_again(fold.turns[0], [EAGER], max_depth=10, at=AT, nonce="n") == Decided()


@pytest.mark.parametrize("ends_next", [0, -1])
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_agents_that_call_each_other_are_called_so_often_and_no_oftener(names: str, ends_next: int) -> None:
    """Whichever of them ends first: of those that were called, the one called first, or last."""
    agents = [Listening(name, triggers="all") for name in names]
    fold = folded(said("u", "Hi"))
    waiting = list(turns_after_message("u", agents, max_depth=4, at=AT).turns)
    fold.apply([turn_event(one) for one in waiting], "0")
    calls: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    while waiting:
        ended = waiting.pop(ends_next)
        calls[ended.agent_id] += 1
        decided = turns_after_agent(fold, ended, agents, max_depth=4, at=AT)
        fold.apply(decided.events(agents), ended.id)
        waiting += [one for one in decided.turns if one not in decided.refused]
        refused.update(one.agent_id for one in decided.refused)
    assert calls == dict.fromkeys(names, 4)
    assert refused == dict.fromkeys(names, 1)
    fold.apply([said("v", "More")], "v")
    [again] = turns_after_message("v", agents[:1], max_depth=4, at=AT).turns
    fold.apply([turn_event(again)], "w")
    assert turns_after_agent(fold, again, agents, max_depth=4, at=AT).refused == (), "another message counts anew"
