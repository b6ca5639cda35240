"""The parts of a session's messages are those that the published `StreamProcessor` makes of the same chunks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from streamkeep.client.sessions import SessionFold, as_json
from streamkeep.sessions.agents import AgentAnswer, AnswerEnd
from tests import node
from tests.replay import Trace
from tests.sessions.session_rows import recorded_session, row

Chunk = dict[str, Any]


@pytest.fixture(scope="session")
def scripts() -> Path:
    return node.project(Path(__file__).parent)


def play(seed: int) -> list[Chunk]:
    """An answer as agents write them: thinking first, then rounds of text, tool calls, approvals and results."""
    dice = random.Random(seed)
    steps: list[Chunk] = []
    for number in range(dice.randrange(3)):
        steps.append({"type": "thinking", "delta": dice.choice(["", f"t{number}"]), "content": f"t{number} and on"})
    for turn in range(dice.randrange(1, 4)):
        steps += text(dice, turn)
        for number in range(dice.randrange(1, 3)):
            steps += tool_call(dice, f"call-{turn}-{number}")
    return [*steps, *text(dice, 9), {"type": "done", "finishReason": "stop"}]


def text(dice: random.Random, turn: int) -> list[Chunk]:
    """Text that begins anew in each round, told with its deltas or without."""
    whole, steps = "", []
    for number in range(dice.randrange(4)):
        delta = f"<{turn}.{number} \N{BLACK SUN WITH RAYS}>" if number == 0 or dice.random() < 0.8 else ""
        whole += delta
        steps.append({"type": "content", "delta": dice.choice([delta, ""]), "content": whole})
    return steps


def tool_call(dice: random.Random, call_id: str) -> list[Chunk]:
    pieces = dice.choice([[""], ["", '{"a"', ": 1}"], ['{"a": 1}'], ['{"a": ', "", "1}"]])
    steps: list[Chunk] = [
        {"type": "tool_call", "index": 0, "toolCall": {"id": call_id, "function": {"name": "f", "arguments": piece}}}
        for piece in pieces
    ]
    is_whole = dice.random() < 0.8
    if is_whole:
        steps.append({"type": "done", "finishReason": "tool_calls"})
    if is_whole and dice.random() < 0.5:
        steps.append({"type": "approval-requested", "toolCallId": call_id, "approval": {"id": f"ok-{call_id}"}})
        if dice.random() < 0.7:
            approved = dice.random() < 0.5
            steps.append({"type": "approval-response", "approvalId": f"ok-{call_id}", "approved": approved})
    ending = dice.randrange(4)
    if ending == 1:
        steps.append({"type": "tool_result", "toolCallId": call_id, "content": "21"})
    elif ending == 2 and is_whole:
        steps.append({"type": "tool-result", "toolCallId": call_id, "output": {"b": "\N{BLACK SUN WITH RAYS}"}})
    elif ending == 3 and is_whole:
        steps.append({"type": "tool-result", "toolCallId": call_id, "output": "x", "error": "broken"})
    return steps


def written_by_agents() -> list[list[Chunk]]:
    """Answers as a session's rows tell them: recorded ones, and one whose text begins anew with the same words."""
    ui = [
        {"type": "text-delta", "delta": "I"},
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "f", "input": {"a": 1}},
        {"type": "tool-output-available", "toolCallId": "c", "output": 21},
        {"type": "text-delta", "delta": "I think"},
        {"type": "finish"},
    ]
    bodies = [Trace.load(name).body for name in ("chat-short", "anthropic-messages", "openai-responses")]
    bodies.append("".join(f"data: {json.dumps(event)}\n\n" for event in ui).encode())
    answers = []
    for body in bodies:
        answer = AgentAnswer()
        answers.append([json.loads(text) for text in (*answer.feed(body), *answer.end(AnswerEnd("done")))])
    return answers


def parts(steps: list[Chunk]) -> Any:
    fold = SessionFold()
    fold.apply([row("a", step, role="assistant", seq=seq) for seq, step in enumerate(steps)], "1")
    return as_json(fold.messages[0].parts)


async def test_the_parts_are_those_of_the_published_package(scripts: Path, tmp_path: Path) -> None:
    recorded = [json.loads(one["value"]["chunk"]) for one in recorded_session()[14:]]
    answers = [recorded, *map(play, range(400)), *written_by_agents()]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(answers))
    status, output = await node.run(scripts, "session_parts.mjs", str(path), timeout_seconds=60)
    assert status == 0, output
    for steps, expected in zip(answers, json.loads(output), strict=True):
        assert parts(steps) == expected, steps
