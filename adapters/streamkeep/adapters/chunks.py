"""Vendors' streams as front ends' chunks: of the AI SDK and of TanStack AI, from OpenAI (chat completions and Responses) and
Anthropic, and from all who speak their formats.

The events are those of the vendors' packages, which are not needed here, or the same as JSON objects. What a vendor streams
ends with `finish` or `RUN_FINISHED` only after its format's own end mark; else the last chunk says that it broke off.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping
from typing import Any, Protocol

from streamkeep.adapters._rules.ag_ui import AgUiWriter
from streamkeep.adapters._rules.ai_sdk import AiSdkWriter
from streamkeep.adapters._sources import closed_afterwards
from streamkeep.sessions.answers import AnswerReader, Step

__all__ = ["ai_sdk_chunks", "tanstack_chunks"]

Chunk = dict[str, Any]


class Model(Protocol):
    """What the vendors' packages give: a Pydantic model."""

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


Events = AsyncIterable[Mapping[str, Any] | Model]


def ai_sdk_chunks(events: Events, *, message_id: str | None = None) -> AsyncGenerator[Chunk, None]:
    """An answer as UI message chunks: text, reasoning, tool calls, why it finished, and its usage as message metadata.

    `message_id` names the message, by default the vendor's id does.
    """
    return _chunks(events, AiSdkWriter(message_id).write)


def tanstack_chunks(
    events: Events, *, thread_id: str, run_id: str, message_id: str | None = None
) -> AsyncGenerator[Chunk, None]:
    """An answer as AG-UI events, which TanStack AI reads: a run with its text, reasoning, tool calls and usage.

    The thread is the chat, the run this answer in it; `message_id` names the message, by default the run does.
    """
    return _chunks(events, AgUiWriter(thread_id, run_id, message_id).write)


async def _chunks(events: Events, write: Callable[[Step], Iterator[Chunk]]) -> AsyncGenerator[Chunk, None]:
    reader = AnswerReader()
    async with closed_afterwards(events):
        async for event in events:
            fields = event if isinstance(event, Mapping) else event.model_dump(mode="json")
            for step in reader.feed(fields):
                for chunk in write(step):
                    yield chunk
    for step in reader.end():
        for chunk in write(step):
            yield chunk
