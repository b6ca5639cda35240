"""The life of a generation: which states follow which, and what each end says."""

from __future__ import annotations

import json

import pytest

from streamkeep.storage import Code, State, Terminal, Usage
from streamkeep.storage.rules.generations import LIVE, TERMINAL, TRANSITIONS, orphaned
from streamkeep.storage.rules.json_messages import SEPARATOR, encode_message, to_array
from streamkeep.storage.rules.offsets import format_offset


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (State.CREATING, {State.RUNNING, State.REFUSED, State.DONE, State.ERROR, State.CANCELLED}),
        (State.RUNNING, {State.DONE, State.ERROR, State.CANCELLED}),
        (State.REFUSED, {State.CREATING}),
        (State.DONE, set()),
        (State.ERROR, set()),
        (State.CANCELLED, set()),
    ],
)
def test_each_state_leads_to_these_and_no_others(before: State, after: set[State]) -> None:
    assert TRANSITIONS[before] == after


def test_a_state_is_live_or_terminal_or_refused() -> None:
    assert set(TRANSITIONS) == set(State)
    assert LIVE | TERMINAL | {State.REFUSED} == set(State)
    assert not LIVE & TERMINAL
    for state in State:
        assert (state.is_live, state.is_terminal) == (state in LIVE, state in TERMINAL)
        # Only what is live comes to an end.
        assert bool(TRANSITIONS[state] & TERMINAL) == state.is_live


_ENDS = [
    (Code.COMPLETE, State.DONE, False),
    (Code.TRUNCATED, State.ERROR, False),
    (Code.UPSTREAM_FAILED, State.ERROR, False),
    (Code.TIMED_OUT, State.ERROR, False),
    (Code.STALLED, State.ERROR, False),
    (Code.TOO_LARGE, State.ERROR, False),
    (Code.STORAGE_UNAVAILABLE, State.ERROR, True),
    (Code.OWNER_LOST, State.ERROR, True),
    (Code.SHUTDOWN, State.ERROR, True),
    (Code.CANCELLED, State.CANCELLED, False),
]


@pytest.mark.parametrize(("code", "state", "is_retryable"), _ENDS)
def test_each_code_has_its_event_and_says_whether_a_retry_is_fair(code: Code, state: State, is_retryable: bool) -> None:
    event = json.loads(Terminal(code, format_offset(3), 3, None, 5).to_json())
    assert code.state is state
    assert (event["event"], event["code"], event["retryable"]) == (state.value, code.value, is_retryable)
    assert event["message"]


def test_every_code_has_its_row() -> None:
    assert [code for code, _, _ in _ENDS] == list(Code)


def test_an_event_says_all_that_is_known() -> None:
    terminal = Terminal(
        Code.COMPLETE, format_offset(7), 7, "ab" * 32, 1500, Usage(0, None, "vendor"), "all \N{SNOWMAN}"
    )
    assert json.loads(terminal.to_json()) == {
        "event": "done",
        "code": "complete",
        "offset": "0000000000000000_0000000000000007",
        "bytes": 7,
        "sha256": "ab" * 32,
        "durationMs": 1500,
        "usage": {"inputTokens": 0, "outputTokens": None, "source": "vendor"},
        "retryable": False,
        "message": "all \N{SNOWMAN}",
    }


def test_what_is_not_known_is_absent_or_null_never_zero() -> None:
    event = json.loads(Terminal(Code.STALLED, format_offset(0), 0, None, 0).to_json())
    assert "sha256" not in event
    assert event["usage"] is None


@pytest.mark.parametrize("detail", ['quotes " and \\', "line\nbreak\x00\x1e\x7f", "half a character \udcff \ud83d", ""])
def test_an_event_is_one_line_of_json_whatever_the_message(detail: str) -> None:
    text = Terminal(Code.UPSTREAM_FAILED, format_offset(0), 0, None, 0, detail=detail).to_json()
    assert b"\n" not in text
    assert SEPARATOR not in text
    assert json.loads(text)["message"] == (detail or "upstream broke off")


@pytest.mark.parametrize(("is_cancel_requested", "code"), [(False, Code.OWNER_LOST), (True, Code.CANCELLED)])
def test_an_orphan_ends_as_lost_unless_somebody_had_cancelled_it(is_cancel_requested: bool, code: Code) -> None:
    assert orphaned(42, 1.5, is_cancel_requested) == Terminal(code, format_offset(42), 42, None, 1500)


@pytest.mark.parametrize(
    ("messages", "array"),
    [
        ([], b"[]"),
        ([b"1"], b"[1]"),
        ([b'{"a": 1}', b"[2,3]", b'"x,y"'], b'[{"a": 1},[2,3],"x,y"]'),
        ([b" 1 ", b"\n2"], b"[ 1 ,\n2]"),
    ],
)
def test_stored_messages_read_as_an_array(messages: list[bytes], array: bytes) -> None:
    stored = b"".join(map(encode_message, messages))
    assert to_array(stored) == array
    assert len(json.loads(array)) == len(messages)


def test_messages_keep_their_bounds_wherever_a_read_begins_after_one() -> None:
    messages = [b'{"n":%d}' % n for n in range(5)]
    stored = b"".join(map(encode_message, messages))
    starts = [0] + [at + 1 for at, byte in enumerate(stored) if stored[at : at + 1] == SEPARATOR]
    for first, start in enumerate(starts):
        assert json.loads(to_array(stored[start:])) == [{"n": n} for n in range(first, 5)]
