"""What a chat shows, whatever comes first: its own writes, their echoes, refusals, silence, others' events, reconnects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkeep.client._rules.chats import ChatChanges, ChatState, PendingWrite
from streamkeep.client._rules.presence import PresencePlan
from streamkeep.client.sessions import SessionFold
from streamkeep.sessions import events
from streamkeep.sessions.events import Author
from streamkeep.sessions.views import Place, Turn
from tests.sessions.session_rows import Author as Agent
from tests.sessions.session_rows import Row, result, said
from tests.sessions.test_fold import folded, seen

ANN = Author("ann", "Ann")
EARLIER, LATER = "2029-01-01T00:00:00.000Z", "2031-01-01T00:00:00.000Z"


def message(message_id: str, *, at: str = EARLIER) -> Row:
    return events.whole_message(
        message_id, [{"type": "text", "content": f"this is {message_id}"}], author=ANN, role="user", at=at
    )


def write(message_id: str) -> PendingWrite:
    return PendingWrite("message", message_id, f"tx-{message_id}", message(message_id), b"")


def tool_write(output: object = "done") -> PendingWrite:
    event = events.tool_result("a1", 0, "call", output, None, author=ANN, at=EARLIER)
    return PendingWrite("tool-result", "call", "tx-call", event, b"")


def approval_write(approved: bool = True) -> PendingWrite:
    event = events.approval_response("a1", 0, "ask", approved, author=ANN, at=EARLIER)
    return PendingWrite("approval", "ask", "tx-ask", event, b"")


def echo(pending: PendingWrite, *, txid: bool = True) -> Row:
    """What the server writes of it: its own time, and mostly the transaction's id."""
    event = message(pending.id, at=LATER) if pending.kind == "message" else dict(pending.event)
    return events.with_txid([event], pending.txid if txid else None)[0]


def answer_of_agent() -> list[Row]:
    """An answer with a tool call that somebody has to allow, and one that a client has to run."""
    agent = Agent("a1")
    return [
        agent.content("Let me ", "Let me "),
        agent.content("see.", "Let me see."),
        agent.call("call", '{"city": "Lodz"}'),
        agent.call("danger", "{}", name="danger"),
        agent.ask("danger", "ask"),
        agent.row("tool-input-available", toolCallId="call", toolName="weather", input={"city": "Lodz"}),
        agent.row("tool-input-available", toolCallId="danger", toolName="danger", input={}),
        agent.done("tool_calls"),
    ]


def loaded(*rows: Row, **options: Any) -> ChatState:
    state = ChatState(**options)
    state.take(rows, f"{len(rows):04d}", is_up_to_date=True)
    return state


def texts(state: ChatState) -> list[str]:
    return [message.text for message in state.shown.messages]


def test_a_message_shows_at_once_and_is_confirmed_by_its_echo() -> None:
    state = loaded(said("u1", "hello"))
    step = state.begin(write("m"))
    assert [message.id for message in step.came] == ["m"]
    assert texts(state) == ["hello", "this is m"]
    assert state.shown.messages[1].created_at == EARLIER
    assert [one.status for one in state.writes] == ["sending"]
    step = state.take([echo(write("m"))], "0002", is_up_to_date=True)
    assert (step.came, step.changes.message_ids) == ((), ("m",))
    assert texts(state) == ["hello", "this is m"]
    assert (state.shown.messages[1].created_at, state.writes) == (LATER, ())
    state.accept(("message", "m"), "0002")
    assert state.shown is state.fold


@pytest.mark.parametrize("brings_txid", [True, False])
def test_the_echo_may_come_before_the_answer_and_without_a_transaction(brings_txid: bool) -> None:
    state = loaded()
    state.begin(write("m"))
    state.take([echo(write("m"), txid=brings_txid), *answer_of_agent()[:2]], "0003", is_up_to_date=True)
    state.accept(("message", "m"), "0001")
    assert (state.writes, texts(state)) == ((), ["this is m", "Let me see."])


def test_what_the_stream_has_already_passed_is_confirmed_by_the_answers_offset() -> None:
    """Such as the repeat of a message that was regenerated away since."""
    state = loaded(message("m"), events.removal("chunk", "m:0"), said("u", "other"))
    state.begin(write("m"))
    assert texts(state) == ["other"]
    state.accept(("message", "m"), "0001")
    assert state.writes == ()


def test_a_refusal_takes_it_back_and_leaves_the_others() -> None:
    state = loaded()
    state.begin(write("m1"))
    state.begin(write("m2"))
    step = state.take_back(("message", "m1"))
    assert (texts(state), step.changes.message_ids) == (["this is m2"], ("m1",))
    assert [message.id for message in state.begin(write("m1")).came] == ["m1"]


def test_silence_neither_takes_it_back_nor_says_that_it_is_stored() -> None:
    state = loaded()
    state.begin(write("m"))
    state.doubt(("message", "m"))
    assert ([one.status for one in state.writes], texts(state), state.is_idle) == (
        ["unconfirmed"],
        ["this is m"],
        False,
    )
    state.begin(state.writes[0])
    assert [one.status for one in state.writes] == ["sending"]
    state.doubt(("message", "m"))
    state.take([echo(write("m"))], "0001", is_up_to_date=True)
    assert (state.writes, texts(state), state.is_idle) == ((), ["this is m"], True)


def test_a_result_and_an_answer_show_in_their_message_at_once_and_go_when_they_are_refused() -> None:
    state = loaded(*answer_of_agent())
    before = seen(state.fold)
    assert state.begin(tool_write()).changes.message_ids == ("a1",)
    state.begin(approval_write(False))
    assert [(call.id, call.state) for call in state.shown.tool_calls] == [("call", "complete"), ("danger", "denied")]
    assert [one.status for one in state.shown.approvals] == ["denied"]
    assert seen(state.fold) == before
    state.take_back(("tool-result", "call"))
    state.take_back(("approval", "ask"))
    assert seen(state.shown) == before


def test_somebody_elses_answer_that_came_first_counts() -> None:
    state = loaded(*answer_of_agent())
    state.begin(tool_write("mine"))
    state.take([result("call", "theirs", message_id="a1")], "0008", is_up_to_date=True)
    assert state.writes == ()
    assert [one.output for one in state.shown.tool_results] == ["theirs"]
    state.take_back(("tool-result", "call"))
    assert [one.output for one in state.shown.tool_results] == ["theirs"]


def test_answers_stream_while_a_message_is_pending() -> None:
    state, rows = loaded(said("u1", "go")), answer_of_agent()
    state.begin(write("m"))
    for index in (0, 1):
        state.take([rows[index]], f"{index + 2:04d}", is_up_to_date=True)
        assert texts(state)[-1] == "this is m"
    state.take([echo(write("m"))], "0004", is_up_to_date=True)
    assert texts(state) == ["go", "Let me see.", "this is m"]


def test_what_was_there_before_is_no_news_and_each_message_is_told_once() -> None:
    state, agent = ChatState(), Agent("a2")
    assert state.take([said("u1", "old"), *answer_of_agent()], "0008", is_up_to_date=False).came == ()
    assert state.take([], "0008", is_up_to_date=True).finished == ()
    step = state.take([agent.content("new")], "0009", is_up_to_date=False)
    assert ([one.id for one in step.came], step.finished) == (["a2"], ())
    step = state.take([agent.content(" one"), agent.done()], "0011", is_up_to_date=True)
    assert (step.came, [one.text for one in step.finished]) == ((), ["new one"])
    step = state.take([agent.row("message-end", reason="done")], "0012", is_up_to_date=True)
    assert (step.came, step.finished, step.changes.message_ids) == ((), (), ("a2",))


def test_a_call_is_run_once_and_only_when_nothing_but_its_result_is_missing() -> None:
    rows = answer_of_agent()
    state = loaded(*rows[:-1], tool_names=["weather", "danger"])
    calls = state.take(rows[-1:], "0007", is_up_to_date=True).calls
    assert [(call.id, call.input) for call in calls] == [("call", {"city": "Lodz"})]
    calls = state.take([dict(approval_write(True).event)], "0008", is_up_to_date=True).calls
    assert [call.id for call in calls] == ["danger"]
    assert state.take([said("u", "x")], "0009", is_up_to_date=True).calls == ()


def test_a_call_that_waited_before_is_run_and_one_that_was_answered_is_not() -> None:
    state = ChatState(["weather"])
    assert state.take(answer_of_agent(), "0007", is_up_to_date=False).calls == ()
    assert [call.id for call in state.take([], "0007", is_up_to_date=True).calls] == ["call"]
    assert loaded(*answer_of_agent(), tool_names=["other"]).take([], "0007", is_up_to_date=True).calls == ()
    late = ChatState(["weather"])
    assert late.take([*answer_of_agent(), result("call", 1)], "0008", is_up_to_date=True).calls == ()


@pytest.mark.parametrize(("asked_by", "runs"), [("ann", True), ("bob", False)])
def test_who_asked_runs_the_tools_of_all_turns_that_this_led_to(asked_by: str, runs: bool) -> None:
    state = ChatState(["weather"], caller_id="ann")
    turns = [
        Turn(f"t{index}", "agent", answer_id, cause_id, "message", 1, EARLIER, Place(0, ""))
        for index, (answer_id, cause_id) in enumerate([("a0", "u1"), ("a1", "a0"), ("x", "y"), ("y", "x")])
    ]
    state.take([said("u1", "go", actor_id=asked_by), *map(events.turn_event, turns)], "0005", is_up_to_date=True)
    calls = state.take(answer_of_agent(), "0013", is_up_to_date=True).calls
    assert [call.id for call in calls] == (["call"] if runs else [])
    lost = Agent("x")
    rows = [lost.call("c", "{}"), lost.row("tool-input-available", toolCallId="c", input={}), lost.done("tool_calls")]
    assert state.take(rows, "0016", is_up_to_date=True).calls == ()


def test_calls_of_one_id_in_two_answers_are_both_run() -> None:
    state = ChatState(["weather"])
    found: list[tuple[str, str]] = []
    for at, message_id in enumerate(("a1", "a2")):
        agent = Agent(message_id)
        offered = agent.row("tool-input-available", toolCallId="call-1", toolName="weather", input={})
        rows = [agent.call("call-1", "{}"), offered, agent.done("tool_calls")]
        calls = state.take(rows, f"{at}0", is_up_to_date=True).calls
        found += [(call.message_id, call.id) for call in calls]
        state.take([result("call-1", "rain", message_id=message_id)], f"{at}1", is_up_to_date=True)
    assert found == [("a1", "call-1"), ("a2", "call-1")]


@pytest.mark.parametrize("end", ["stop", "error"])
def test_a_call_of_an_answer_that_broke_off_is_not_run(end: str) -> None:
    state, agent = ChatState(["weather"]), Agent("a1")
    assert state.take([agent.call("call", '{"ci'), agent.row(end)], "0002", is_up_to_date=True).calls == ()


def test_a_chat_is_idle_when_it_has_read_what_it_asked_for_and_all_turns_have_ended() -> None:
    state, answer = loaded(said("u1", "go")), Agent("a1")
    assert state.is_idle
    state.expect("0002")
    state.expect(None)
    assert not state.is_idle
    turn = Turn("t1", "agent", "a1", "u1", "regenerate", 1, EARLIER, Place(0, ""))
    state.take([events.turn_event(turn), answer.row("message-start")], "0003", is_up_to_date=True)
    state.take([answer.content("done"), answer.done()], "0005", is_up_to_date=True)
    assert not state.is_idle
    state.take([answer.row("message-end", reason="done")], "0006", is_up_to_date=True)
    assert state.is_idle


def test_changes_add_up() -> None:
    first = ChatChanges(("a", "b"), ("ann",), (), status=True)
    assert first | ChatChanges(("b", "c"), (), ("gpt",), was_reset=True) == ChatChanges(
        ("a", "b", "c"), ("ann",), ("gpt",), status=True, was_reset=True
    )


@dataclass
class World:
    """A server's stream, a chat that reads it, and a connection between them that does what it likes."""

    others: list[Row]
    state: ChatState = field(default_factory=ChatState)
    stream: list[Row] = field(default_factory=list)
    stored: dict[str, int] = field(default_factory=dict)
    begun: dict[str, PendingWrite] = field(default_factory=dict)
    read: int = 0

    def __post_init__(self) -> None:
        self.state.take([], "0000", is_up_to_date=True)

    def somebody_writes(self) -> None:
        if self.others:
            self.stream.append(self.others.pop(0))

    def begin(self, pending: PendingWrite) -> None:
        self.begun[pending.id] = pending
        self.state.begin(pending)

    def store(self, pending: PendingWrite) -> None:
        """Once, however often it is sent."""
        if pending.id in self.begun and pending.id not in self.stored:
            self.stream.append(echo(pending))
            self.stored[pending.id] = len(self.stream)

    def answer(self, pending: PendingWrite) -> None:
        if pending.id in self.stored:
            self.state.accept(pending.key, f"{self.stored[pending.id]:04d}")

    def refuse(self, pending: PendingWrite) -> None:
        if pending.id in self.begun and pending.id not in self.stored:
            self.state.take_back(pending.key)
            del self.begun[pending.id]

    def lose(self, pending: PendingWrite) -> None:
        self.state.doubt(pending.key)

    def deliver(self, count: int) -> None:
        batch = self.stream[self.read : self.read + count]
        self.read += len(batch)
        self.state.take(batch, f"{self.read:04d}", is_up_to_date=self.read == len(self.stream))

    def reconnect(self) -> None:
        self.state.restart(SessionFold.from_json(self.state.fold.to_json()))

    def check(self) -> None:
        pending = [dict(one.event) for one in self.state.writes]
        assert shown(self.state.shown) == shown(folded([*self.stream[: self.read], *pending]))
        ids = [one.id for one in self.state.shown.messages]
        assert len(ids) == len(set(ids))
        assert {one.id for one in self.begun.values() if one.kind == "message"} <= set(ids)


def shown(fold: SessionFold) -> dict[str, Any]:
    return {name: value for name, value in seen(fold).items() if name != "offset"}


WRITES = [write("m1"), write("m2"), tool_write(), approval_write()]
ACTIONS: list[Callable[[World, PendingWrite], None]] = [
    World.begin,
    World.store,
    World.answer,
    World.refuse,
    World.lose,
    lambda world, pending: world.somebody_writes(),
    lambda world, pending: world.deliver(1),
    lambda world, pending: world.deliver(3),
    lambda world, pending: world.reconnect(),
]


@given(st.lists(st.tuples(st.integers(0, len(ACTIONS) - 1), st.sampled_from(WRITES)), max_size=40))
def test_any_interleaving_ends_equal_to_a_fold_of_the_stream(actions: list[tuple[int, PendingWrite]]) -> None:
    world = World([said("u1", "go"), *answer_of_agent()])
    for index, pending in actions:
        ACTIONS[index](world, pending)
        world.check()
    for pending in WRITES:
        world.store(pending)
    while world.others or world.read < len(world.stream):
        world.somebody_writes()
        world.deliver(2)
    world.check()
    for pending in WRITES:
        world.answer(pending)
    assert world.state.writes == ()
    assert shown(world.state.shown) == shown(folded(world.stream))


def test_presence_is_said_at_once_and_repeated() -> None:
    plan = PresencePlan()
    assert (plan.due(now=0.0), plan.next_at(now=0.0)) == (None, float("inf"))
    plan.announce("online")
    assert plan.due(now=0.0) == ("online", False)
    plan.said(("online", False), now=0.0)
    assert (plan.due(now=44.0), plan.next_at(now=44.0), plan.due(now=45.0)) == (None, 45.0, ("online", False))
    plan.announce("away")
    assert plan.due(now=46.0) == ("away", False)
    plan.leave()
    assert (plan.due(now=99.0), plan.status) == (None, None)


def test_typing_is_said_once_ends_by_itself_and_is_repeated_while_it_lasts() -> None:
    plan = PresencePlan()
    plan.type(True, now=0.0)
    plan.said(("online", True), now=0.0)
    plan.type(True, now=1.0)
    assert (plan.due(now=1.0), plan.next_at(now=1.0)) == (None, 4.0)
    assert plan.due(now=4.0) == ("online", False)
    for second in range(6):
        plan.type(True, now=float(second))
    assert (plan.due(now=4.9), plan.due(now=5.0)) == (None, ("online", True))
    plan.type(False, now=5.5)
    assert plan.due(now=5.5) == ("online", False)
