"""What agents are sent: a session up to a message, as the models and front ends of each format read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.types import MessageParam
from openai.types.chat import ChatCompletionMessageParam
from openai.types.responses import ResponseInputItemParam
from pydantic import TypeAdapter

from streamkeep.sessions import SessionFold
from streamkeep.sessions.agents import AgentFormat, History
from streamkeep.sessions.agents.history import MAX_HISTORY_CHARACTERS
from tests.sessions.session_rows import Author, Row, agent, answer, result, said


def folded(*rows: Row) -> SessionFold:
    fold = SessionFold()
    fold.apply(rows, "1")
    return fold


def fields(fold: SessionFold, until: str, format: AgentFormat | None, agent_id: str = "agent") -> dict[str, Any]:
    history = History.of(fold, until)
    assert history is not None
    return history.request_fields(agent_id=agent_id, format=format)


def messages(fold: SessionFold, until: str, format: AgentFormat | None = None, agent_id: str = "agent") -> list[Any]:
    found: list[Any] = fields(fold, until, format, agent_id)["messages"]
    return found


def working_session() -> SessionFold:
    """Text and calls in rounds: one that the agent ran, one of a client, and questions that were answered, or not yet."""
    author = Author("a")
    return folded(
        said("u1", "What is the weather?"),
        author.row("thinking", delta="hm"),
        author.content("Let me see."),
        author.call("c1", '{"city":"Łódź"}'),
        author.row("tool_result", toolCallId="c1", content="21"),
        author.content("And now", ""),
        author.call("c2", "{}", name="locate"),
        author.call("c3", "{}", name="delete"),
        author.ask("c3", "no"),
        author.call("c4", "{}", name="pay"),
        author.ask("c4", "yes"),
        author.call("c5", "{}", name="never"),
        author.row("message-end"),
        result("c2", {"lat": 1}, error="lost"),
        answer("no", False),
        answer("yes", True),
        said("u2", "Thanks"),
    )


def call(call_id: str, name: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("format", [None, "openai"])
def test_chat_completions_have_calls_and_what_came_of_them(format: AgentFormat | None) -> None:
    assert messages(working_session(), "u2", format) == [
        {"role": "user", "content": "What is the weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call("c1", "weather", '{"city":"Łódź"}')],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "21"},
        {
            "role": "assistant",
            "content": "And now",
            "tool_calls": [call("c2", "locate"), call("c3", "delete"), call("c4", "pay")],
        },
        {"role": "tool", "tool_call_id": "c2", "content": '{"error":"lost"}'},
        {"role": "tool", "tool_call_id": "c3", "content": '{"approved": false}'},
        {"role": "tool", "tool_call_id": "c4", "content": '{"approved": true}'},
        {"role": "user", "content": "Thanks"},
    ]


def test_responses_have_items() -> None:
    fold = working_session()
    fold.apply([said("s", "Be brief.", role="system")], "2")
    assert fields(fold, "s", "openai-responses") == {
        "input": [
            {"role": "user", "content": "What is the weather?"},
            {"role": "assistant", "content": "Let me see."},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Łódź"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "21"},
            {"role": "assistant", "content": "And now"},
            {"type": "function_call", "call_id": "c2", "name": "locate", "arguments": "{}"},
            {"type": "function_call", "call_id": "c3", "name": "delete", "arguments": "{}"},
            {"type": "function_call", "call_id": "c4", "name": "pay", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c2", "output": '{"error":"lost"}'},
            {"type": "function_call_output", "call_id": "c3", "output": '{"approved": false}'},
            {"type": "function_call_output", "call_id": "c4", "output": '{"approved": true}'},
            {"role": "user", "content": "Thanks"},
            {"role": "system", "content": "Be brief."},
        ]
    }


SHAPES: list[tuple[AgentFormat, Any]] = [
    ("openai", ChatCompletionMessageParam),
    ("openai-responses", ResponseInputItemParam),
    ("anthropic", MessageParam),
]


@pytest.mark.parametrize(("format", "shape"), SHAPES)
def test_models_are_sent_what_their_vendors_packages_describe(format: AgentFormat, shape: Any) -> None:
    [sent] = fields(working_session(), "u2", format).values()
    described = TypeAdapter(list[shape])
    assert plain(described.validate_python(sent)) == sent
    with pytest.raises(ValueError, match="validation error"):
        described.validate_python([{"role": "user", "parts": []}])


def plain(checked: object) -> object:
    """A value that was checked; some of it is only checked when it is looked at."""
    if isinstance(checked, dict):
        return {name: plain(value) for name, value in checked.items()}
    if isinstance(checked, Iterable) and not isinstance(checked, str):
        return [plain(one) for one in checked]
    return checked


def test_anthropic_has_blocks_and_the_system_apart() -> None:
    fold = working_session()
    fold.apply([said("s", "Be brief.", role="system")], "2")
    told = fields(fold, "s", "anthropic")
    assert told["system"] == "Be brief."
    assert told["messages"][:3] == [
        {"role": "user", "content": [{"type": "text", "text": "What is the weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Łódź"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "21"}]},
    ]
    failed, denied, allowed = told["messages"][4]["content"]
    assert (failed["is_error"], denied["is_error"], "is_error" in allowed) == (True, True, False)


def test_ui_messages_have_everything_in_parts() -> None:
    [first, told, last] = messages(working_session(), "u2", "ai-sdk")
    assert first == {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "What is the weather?"}]}
    assert last["parts"] == [{"type": "text", "text": "Thanks"}]
    assert [part["type"] for part in told["parts"]] == [
        *("reasoning", "text", "tool-weather", "text", "tool-locate", "tool-delete", "tool-pay", "tool-never"),
    ]
    assert [part["state"] for part in told["parts"] if "state" in part] == [
        *("output-available", "output-error", "approval-responded", "approval-responded", "input-available"),
    ]
    assert told["parts"][6]["approval"] == {"id": "yes", "approved": True}
    assert told["parts"][2]["output"] == "21"


def test_tanstack_messages_have_the_parts_of_the_session() -> None:
    [_, told, _] = messages(working_session(), "u2", "tanstack")
    assert told["parts"][2] == {
        "id": "c1",
        "name": "weather",
        "arguments": '{"city":"Łódź"}',
        "state": "input-complete",
        "type": "tool-call",
    }


def test_history_ends_with_the_message_that_is_answered() -> None:
    fold = folded(said("u1", "one"), said("u2", "two"), said("u3", "three"))
    assert [one["content"] for one in messages(fold, "u2")] == ["one", "two"]
    assert History.of(fold, "u4") is None


def test_calls_without_an_outcome_and_messages_without_words_are_left_out() -> None:
    author, silent = Author("a"), Author("b")
    fold = folded(said("u", "Hi"), author.content("x"), author.call("c", "{"), silent.call("d", "{}"))
    assert messages(fold, "b") == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]
    assert len(messages(fold, "b", "anthropic")) == 2
    blank = folded(said("u", "Hi"), said("v", " \n"))
    assert messages(blank, "v", "anthropic") == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


def test_other_agents_of_the_session_are_somebody_else() -> None:
    other = Author("b", actor_id="critic")
    fold = folded(said("u", "Hi"), agent("critic", name="Critic"), other.content("No."), other.call("c", "{}"))
    assert messages(fold, "b")[1] == {"role": "user", "content": "Critic: No."}
    assert messages(fold, "b", "anthropic")[1]["content"] == [{"type": "text", "text": "Critic: No."}]
    assert messages(fold, "b", agent_id="critic")[1]["role"] == "assistant"


def test_the_oldest_messages_give_way() -> None:
    size = MAX_HISTORY_CHARACTERS // 3
    fold = folded(*(said(f"u{number}", "x" * size) for number in range(9)), said("last", "y" * 5 * size))
    assert len(messages(fold, "u8")) == 2
    assert [one["content"][:1] for one in messages(fold, "last")] == ["y"]
