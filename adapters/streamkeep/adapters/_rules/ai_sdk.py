"""The steps of an answer as UI message chunks of the AI SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from streamkeep.sessions.answers import (
    Began,
    BlockEnded,
    CallBegan,
    CallInput,
    CallReady,
    Failed,
    Finished,
    Said,
    Step,
    Thought,
)

Chunk = dict[str, Any]


class AiSdkWriter:
    """One answer, which is one step of one message. `message_id` wins over the vendor's id."""

    def __init__(self, message_id: str | None) -> None:
        self._message_id = message_id
        self._open: str | None = None

    def write(self, step: Step) -> Iterator[Chunk]:
        match step:
            case Began():
                message_id = self._message_id or step.id
                yield {"type": "start", **({} if message_id is None else {"messageId": message_id})}
                yield {"type": "start-step"}
            case Said():
                yield from self._delta("text", step.block, step.text)
            case Thought():
                yield from self._delta("reasoning", step.block, step.text)
            case BlockEnded():
                yield {"type": f"{self._open}-end", "id": str(step.block)}
                self._open = None
            case CallBegan():
                yield {"type": "tool-input-start", "toolCallId": step.id, "toolName": step.name}
            case CallInput():
                yield {"type": "tool-input-delta", "toolCallId": step.id, "inputTextDelta": step.text}
            case CallReady():
                yield _ready(step)
            case Finished():
                yield {"type": "finish-step"}
                yield {"type": "finish", "finishReason": step.reason.replace("_", "-"), **_metadata(step)}
            case Failed():
                yield {"type": "error", "errorText": step.message}

    def _delta(self, kind: str, block: int, text: str) -> Iterator[Chunk]:
        if self._open is None:
            self._open = kind
            yield {"type": f"{kind}-start", "id": str(block)}
        yield {"type": f"{kind}-delta", "id": str(block), "delta": text}


def _ready(call: CallReady) -> Chunk:
    named = {"toolCallId": call.id, "toolName": call.name}
    try:
        return {"type": "tool-input-available", **named, "input": json.loads(call.text or "{}")}
    except (ValueError, RecursionError):
        error = "the model's arguments are not JSON"
        return {"type": "tool-input-error", **named, "input": call.text, "errorText": error}


def _metadata(finished: Finished) -> Chunk:
    if finished.usage is None:
        return {}
    usage = finished.usage
    counts = {"inputTokens": usage.input, "outputTokens": usage.output, "totalTokens": usage.total}
    return {"messageMetadata": {"usage": {name: count for name, count in counts.items() if count is not None}}}
