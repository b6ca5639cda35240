"""The agents of the demo of sessions. They are sent the conversation as UI messages of the AI SDK, and answer in its chunks."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from streamkeep.adapters.chunks import ai_sdk_chunks
from streamkeep.demos.answers import prompt_of
from streamkeep.demos.model import Model, ModelError

Chunk = dict[str, Any]

_TOOL = "book_table"
_SECONDS_PER_WORD = 0.15
_VERDICT = (
    "A fine question. I let the guide speak at length, and say only this: mind the weather, and bring good shoes."
)


async def guide(model: Model, messages: Sequence[Any]) -> AsyncGenerator[Chunk, None]:
    """What the model says; a question about a table asks for an approval first, and goes on when that was given."""
    prompt = prompt_of(messages)
    answered = _answered_booking(messages[-1])
    if answered is not None:
        async for chunk in _booked(*answered):
            yield chunk
    elif "table" in str(prompt[-1]["content"]).lower():
        for chunk in _asking():
            yield chunk
    else:
        try:
            async with aclosing(ai_sdk_chunks(model.stream(prompt, payer="durable"))) as chunks:
                async for chunk in chunks:
                    yield chunk
        except ModelError as exc:
            yield {"type": "error", "errorText": str(exc)}


async def critic(model: Model, messages: Sequence[Any]) -> AsyncGenerator[Chunk, None]:
    """One sentence, word by word, whatever was asked."""
    async for chunk in _said(_VERDICT):
        yield chunk


AGENTS: Mapping[str, Callable[[Model, Sequence[Any]], AsyncGenerator[Chunk, None]]] = {"guide": guide, "critic": critic}


def _asking() -> list[Chunk]:
    call_id = f"call-{uuid.uuid4().hex}"
    booking = {"place": "Lisbon", "people": 2}
    return [
        {"type": "tool-input-available", "toolCallId": call_id, "toolName": _TOOL, "input": booking},
        {"type": "tool-approval-request", "toolCallId": call_id, "approvalId": f"ok-{call_id}"},
        {"type": "finish", "finishReason": "tool-calls"},
    ]


def _answered_booking(message: Any) -> tuple[str, bool] | None:
    """The call of a booking that somebody has just approved or denied, if that is what the conversation ends with."""
    for part in message["parts"] if message.get("role") == "assistant" else ():
        match part:
            case {"type": str(kind), "toolCallId": str(call_id), "approval": {"approved": bool(approved)}}:
                if kind == f"tool-{_TOOL}":
                    return call_id, approved
    return None


async def _booked(call_id: str, is_approved: bool) -> AsyncIterator[Chunk]:
    if is_approved:
        yield {"type": "tool-output-available", "toolCallId": call_id, "output": {"booked": True, "at": "20:00"}}
    said = "The table is yours, at eight." if is_approved else "Then I book nothing."
    async for chunk in _said(said):
        yield chunk


async def _said(text: str) -> AsyncIterator[Chunk]:
    for number, word in enumerate(text.split()):
        yield {"type": "text-delta", "id": "0", "delta": word if number == 0 else f" {word}"}
        await asyncio.sleep(_SECONDS_PER_WORD)
    yield {"type": "finish", "finishReason": "stop"}
