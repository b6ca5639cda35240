"""The formats in which agents answer: events in, chunks out by a `ChunkWriter`.

Which format it is, the first event tells. Agents may be models of OpenAI or Anthropic, and all who speak like them, or
programs that stream to front ends: UI messages of the AI SDK, chunks of TanStack AI, and AG-UI events, which those became.

What is not known is left out. So nobody can write in others' names: a user's message, a client's tool result, the answer to
an approval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from streamkeep.sessions.agents.chunks import ChunkWriter
from streamkeep.sessions.agents.framing import Event
from streamkeep.sessions.answers import (
    TRUNCATED,
    AnswerReader,
    CallBegan,
    CallInput,
    CallReady,
    Failed,
    Finished,
    Said,
    Step,
    Thought,
)
from streamkeep.sessions.chunks import as_text

AgentFormat = Literal["openai", "openai-responses", "anthropic", "ai-sdk", "tanstack"]

_MODEL_WORDS = """
message_start message_delta message_stop content_block_start content_block_delta content_block_stop
"""
_UI_WORDS = """
start start-step finish-step finish abort text-start text-delta text-end reasoning-start reasoning-delta reasoning-end
tool-input-start tool-input-delta tool-input-available tool-input-error tool-approval-request tool-output-available
tool-output-error
"""
_TANSTACK_WORDS = "content thinking tool_call tool_result tool-input-available approval-requested done"
_MODEL_EVENTS = frozenset(_MODEL_WORDS.split())
_UI_EVENTS = frozenset(_UI_WORDS.split())
_TANSTACK_CHUNKS = frozenset(_TANSTACK_WORDS.split())
_AG_UI_FAMILIES = ("RUN_", "TEXT_MESSAGE_", "TOOL_CALL_", "REASONING_", "THINKING_", "STEP_")


class Format(Protocol):
    """One answer in one format. Whatever is odd about an event may raise KeyError, TypeError, ValueError, AttributeError."""

    def take(self, event: Event) -> None: ...

    def end(self, *, is_clean: bool, is_marked: bool) -> None:
        """The events are over: end the answer, if it is whole. `is_clean`: the bytes did not break off; `is_marked`: their
        last event was the end mark that many formats share."""


def format_for(event: Event, wanted: AgentFormat | None, writer: ChunkWriter) -> Format | None:
    """The format of an answer in which this is the first event that tells; None for one that does not. Whoever is sent one of
    OpenAI's formats may answer in the other."""
    wanted = "openai" if wanted == "openai-responses" else wanted
    kind = str(event.get("type"))
    found: tuple[AgentFormat, Callable[[ChunkWriter], Format]] | None = None
    if "choices" in event or kind.startswith("response.") or event.get("object") == "response":
        found = "openai", ModelFormat
    elif kind in _MODEL_EVENTS or (kind == "message" and isinstance(event.get("content"), list)):
        found = "anthropic", ModelFormat
    elif kind in _TANSTACK_CHUNKS and not (kind in _UI_EVENTS and wanted == "ai-sdk"):
        found = "tanstack", TanStackFormat
    elif kind in _UI_EVENTS:
        found = "ai-sdk", UiMessageFormat
    elif kind.startswith(_AG_UI_FAMILIES):
        found = "tanstack", AgUiFormat
    return None if found is None or wanted not in (None, found[0]) else found[1](writer)


def failure_of(event: Event) -> tuple[str | None, str | None] | None:
    """What an event says when it tells of a failure, in any format's words: a message, and maybe a code."""
    kind, error = event.get("type"), event.get("error")
    if kind not in ("error", "RUN_ERROR") and (kind is not None or not error):
        return None
    about: Mapping[str, Any] = error if isinstance(error, dict) else event
    texts = (about.get("message"), error, event.get("message"), event.get("errorText"))
    said = next((text for text in texts if isinstance(text, str) and text), None)
    code = next((text for text in (about.get("code"), about.get("type")) if isinstance(text, str)), None)
    return said, None if code == kind else code


class ModelFormat:
    """Chat completions, Responses, and Anthropic's messages, streamed or as one JSON object."""

    def __init__(self, writer: ChunkWriter) -> None:
        self._writer = writer
        self._reader = AnswerReader()

    def take(self, event: Event) -> None:
        for streamed in _streamed(event):
            for step in self._reader.feed(streamed):
                self._write(step)

    def end(self, *, is_clean: bool, is_marked: bool) -> None:
        for step in self._reader.end():
            if step != Failed(TRUNCATED):
                self._write(step)
            elif is_marked:
                # Lax vendors leave out why it finished.
                self._writer.finish(None)

    def _write(self, step: Step) -> None:
        writer = self._writer
        match step:
            case Said():
                writer.say(step.text)
            case Thought():
                writer.think(step.text)
            case CallBegan():
                writer.begin_call(step.id, step.name)
            case CallInput():
                writer.call_piece(step.id, step.text)
            case CallReady():
                writer.end_call(step.id)
                writer.offer_call(step.id)
            case Finished():
                usage = step.usage
                counts = {} if usage is None else {"inputTokens": usage.input, "outputTokens": usage.output}
                writer.finish(step.reason, counts)
            case Failed():
                writer.fail(step.message, "agent_failed")


class UiMessageFormat:
    """UI message chunks of the AI SDK. `finish` ends the answer."""

    def __init__(self, writer: ChunkWriter) -> None:
        self._writer = writer

    def take(self, event: Event) -> None:
        writer, call_id, name = self._writer, event.get("toolCallId"), event.get("toolName")
        match event["type"]:
            case "text-delta":
                writer.say(event["delta"])
            case "reasoning-delta":
                writer.think(event["delta"])
            case "tool-input-start":
                writer.begin_call(call_id, name)
            case "tool-input-delta":
                writer.call_piece(call_id, event["inputTextDelta"])
            case "tool-input-available":
                writer.begin_call(call_id, name)
                writer.end_call(call_id, event.get("input"))
            case "tool-input-error":
                writer.begin_call(call_id, name)
                writer.settle_call(call_id, None, event.get("errorText") or "the arguments cannot be used")
            case "tool-approval-request":
                writer.ask(call_id, event.get("approvalId"))
            case "tool-output-available" if event.get("preliminary") is not True:
                writer.settle_call(call_id, event.get("output"))
            case "tool-output-error":
                writer.settle_call(call_id, None, event.get("errorText") or "the tool failed")
            case "finish":
                metadata = event.get("messageMetadata")
                usage = metadata.get("usage") if isinstance(metadata, dict) else None
                writer.finish(event.get("finishReason"), usage)
            case "abort":
                writer.stop(event.get("reason"))

    def end(self, *, is_clean: bool, is_marked: bool) -> None:
        if is_marked:
            self._writer.finish(None)


class TanStackFormat:
    """Chunks of TanStack AI 0.1, which are those of sessions: they are handed on nearly as they are.

    `content` is left out where it only says again what its pieces did: it would make each row as long as all before. A `done`
    that announces tool calls does not end the answer, since the agent runs those and goes on.
    """

    def __init__(self, writer: ChunkWriter) -> None:
        self._writer = writer
        self._is_done = False
        self._so_far = {"content": "", "thinking": ""}

    def take(self, event: Event) -> None:
        writer, fields = self._writer, {name: event[name] for name in event if name not in _REPEATED}
        match event["type"]:
            case "content" | "thinking" as kind:
                writer.write(self._shortened(kind, fields))
            case "tool_call":
                called = event["toolCall"]
                writer.note_call(called["id"], called["function"].get("name"))
                self._so_far["content"] = ""
                writer.write(fields)
            case "tool_result":
                writer.settle_call(event["toolCallId"], event["content"], event.get("error"))
            case "tool-input-available" | "approval-requested":
                writer.write(fields)
            case "done":
                reason = event.get("finishReason")
                writer.finish(reason, event.get("usage"), goes_on=reason == "tool_calls")
                self._is_done = True

    def end(self, *, is_clean: bool, is_marked: bool) -> None:
        _end_of_runs(self._writer, is_done=self._is_done, is_clean=is_clean, is_marked=is_marked)

    def _shortened(self, kind: Literal["content", "thinking"], fields: dict[str, Any]) -> dict[str, Any]:
        delta, content = fields.get("delta"), fields.get("content")
        if isinstance(delta, str) and delta:
            fields["delta"] = self._writer.whole_characters(kind, delta)
            if isinstance(content, str):
                so_far, self._so_far[kind] = self._so_far[kind], content
                is_repeated = so_far and len(content) == len(so_far) + len(delta) and content.startswith(so_far)
                if is_repeated or fields["delta"] != delta:
                    del fields["content"]
        return fields


class AgUiFormat:
    """AG-UI events, which newer versions of TanStack AI stream. `RUN_FINISHED` ends the answer, unless it announces tool
    calls: then another run may follow."""

    def __init__(self, writer: ChunkWriter) -> None:
        self._writer = writer
        self._is_done = False
        self._has_reasoning = False

    def take(self, event: Event) -> None:
        writer, call_id = self._writer, event.get("toolCallId")
        name = event.get("toolCallName") or event.get("toolName")
        match event["type"]:
            case "TEXT_MESSAGE_CONTENT" | "TEXT_MESSAGE_CHUNK":
                writer.say(event["delta"])
            case "REASONING_MESSAGE_CONTENT" | "REASONING_MESSAGE_CHUNK" | "THINKING_TEXT_MESSAGE_CONTENT":
                self._has_reasoning = True
                writer.think(event["delta"])
            case "STEP_FINISHED" if not self._has_reasoning:
                # The same thoughts may come in both of two ways.
                writer.think(event["delta"])
            case "TOOL_CALL_START":
                writer.begin_call(call_id, name)
            case "TOOL_CALL_ARGS" | "TOOL_CALL_CHUNK":
                writer.begin_call(call_id, name)
                writer.call_piece(call_id, event["delta"])
            case "TOOL_CALL_END":
                writer.end_call(call_id, event.get("input"))
                if event.get("result") is not None:
                    writer.settle_call(call_id, event["result"])
            case "TOOL_CALL_RESULT":
                writer.settle_call(call_id, event["content"])
            case "CUSTOM":
                self._take_custom(event)
            case "RUN_FINISHED":
                reason = event.get("finishReason")
                writer.finish(reason, event.get("usage"), goes_on=reason == "tool_calls")
                self._is_done = True

    def end(self, *, is_clean: bool, is_marked: bool) -> None:
        _end_of_runs(self._writer, is_done=self._is_done, is_clean=is_clean, is_marked=is_marked)

    def _take_custom(self, event: Event) -> None:
        value = event.get("value") or event["data"]
        call_id = value["toolCallId"]
        self._writer.begin_call(call_id, value.get("toolName"))
        self._writer.end_call(call_id, value.get("input"))
        match event["name"]:
            case "tool-input-available":
                self._writer.offer_call(call_id)
            case "approval-requested":
                self._writer.ask(call_id, value["approval"]["id"])


# The clock of whoever wrote a chunk, and what is the same in all of them.
_REPEATED = frozenset({"timestamp", "id", "model"})

# What such a JSON object is as events: a stream says in many what it says in one.


def _streamed(event: Event) -> list[Event]:
    """The same answer as its format streams it."""
    if event.get("object") == "response":
        return _streamed_response(event)
    if event.get("type") == "message":
        return _streamed_message(event)
    if any("message" in choice for choice in event.get("choices") or ()):
        return _streamed_completion(event)
    return [event]


def _streamed_completion(whole: Event) -> list[Event]:
    choices = []
    for choice in whole["choices"]:
        delta = dict(choice["message"])
        calls = delta.get("tool_calls") or ()
        delta["tool_calls"] = [{**call, "index": index} for index, call in enumerate(calls)]
        choices.append({**choice, "delta": delta, "finish_reason": choice.get("finish_reason") or "stop"})
    return [{**whole, "choices": choices}]


def _streamed_response(whole: Event) -> list[Event]:
    events: list[Event] = [{"type": "response.created", "response": whole}]
    for index, item in enumerate(whole.get("output") or ()):
        item_id = item.get("id") or str(index)
        named = {**item, "id": item_id}
        match item.get("type"):
            case "message":
                for at, part in enumerate(item["content"]):
                    place = {"item_id": item_id, "content_index": at}
                    text = part.get("text") or part.get("refusal") or ""
                    events.append({"type": "response.output_text.delta", **place, "delta": text})
            case "reasoning":
                for at, part in enumerate(item.get("summary") or ()):
                    place = {"item_id": item_id, "summary_index": at}
                    events.append({"type": "response.reasoning_summary_text.delta", **place, "delta": part["text"]})
            case "function_call":
                arguments = {"item_id": item_id, "output_index": index, "delta": item["arguments"]}
                events += [
                    {"type": "response.output_item.added", "output_index": index, "item": named},
                    {"type": "response.function_call_arguments.delta", **arguments},
                ]
        events.append({"type": "response.output_item.done", "output_index": index, "item": named})
    kind = "response.failed" if whole.get("status") == "failed" else "response.completed"
    return [*events, {"type": kind, "response": whole}]


def _streamed_message(whole: Event) -> list[Event]:
    events: list[Event] = [{"type": "message_start", "message": whole}]
    for index, block in enumerate(whole["content"]):
        place = {"index": index}
        events.append({"type": "content_block_start", **place, "content_block": block})
        if block["type"] == "tool_use":
            arguments = as_text(block.get("input") or {})
            events.append({"type": "content_block_delta", **place, "delta": {"partial_json": arguments}})
        events.append({"type": "content_block_stop", **place})
    reason = {"stop_reason": whole.get("stop_reason") or "end_turn"}
    return [*events, {"type": "message_delta", "delta": reason}, {"type": "message_stop"}]


def _end_of_runs(writer: ChunkWriter, *, is_done: bool, is_clean: bool, is_marked: bool) -> None:
    """Some run has announced tool calls, maybe, and none came after it."""
    if is_done and is_clean:
        writer.offer_calls()
        writer.end("done")
    elif is_marked:
        writer.finish(None)
