"""An answer's chunks, as JSON text: what stands in the rows of an agent's message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from streamkeep.sessions.chunks import as_text
from streamkeep.sessions.events import EndReason
from streamkeep.sessions.json_text import json_value

FINISH_REASONS: Final = frozenset({"stop", "length", "content_filter", "tool_calls"})

_TOKEN_NAMES: Final = {
    "promptTokens": ("promptTokens", "prompt_tokens", "inputTokens", "input_tokens"),
    "completionTokens": ("completionTokens", "completion_tokens", "outputTokens", "output_tokens"),
    "totalTokens": ("totalTokens", "total_tokens"),
}
MAX_CHUNKS = 200_000
MAX_ANSWER_CHARACTERS = 8 * 1024 * 1024
"""An answer that grows beyond either is broken off: whoever folds the session has all of it in memory."""

_MAX_TOKENS = 2**53
_MAX_ERROR_CHARACTERS = 2000
_MAX_CODE_CHARACTERS = 100

Fields = dict[str, Any]


@dataclass(slots=True)
class _Call:
    """A tool call as far as it was told. It `is_ended` with its arguments, `is_offered` to whoever runs its tool, or `is_asked`
    about, and `is_settled` once the agent has run the tool itself."""

    name: str
    index: int
    arguments: list[str]
    is_ended: bool = False
    is_offered: bool = False
    is_asked: bool = False
    is_settled: bool = False

    @property
    def input(self) -> Any:
        """Raises: ValueError: the arguments are no JSON."""
        return json_value("".join(self.arguments).strip() or "{}")


class ChunkWriter:
    """Takes what an agent says, in whatever words, and gathers the chunks that tell it.

    `ended_by` is set with the chunk that ends the answer, and `is_too_large` when that was a limit; what is said then counts
    no more. Text is told by its pieces alone: a piece whose `content` is empty begins anew, behind a tool call.
    """

    def __init__(self) -> None:
        self.ended_by: EndReason | None = None
        self.is_too_large = False
        self._count = 0
        self._characters = 0
        self._written: list[str] = []
        self._calls: dict[str, _Call] = {}
        self._has_text = False
        self._has_calls_since_text = False
        self._half: dict[str, str] = {"content": "", "thinking": ""}

    def taken(self) -> list[str]:
        """What was written since this was last asked."""
        written, self._written = self._written, []
        return written

    def say(self, text: object) -> None:
        """A piece of the answer's text."""
        piece = self.whole_characters("content", text)
        if piece:
            begins_anew = self._has_text and self._has_calls_since_text
            self._has_text, self._has_calls_since_text = True, False
            self.write({"type": "content", "delta": piece, **({"content": ""} if begins_anew else {})})

    def think(self, text: object) -> None:
        """A piece of what the model thinks."""
        piece = self.whole_characters("thinking", text)
        if piece:
            self.write({"type": "thinking", "delta": piece})

    def begin_call(self, call_id: object, name: object) -> None:
        """A tool is called; a second time changes nothing."""
        if not isinstance(call_id, str) or not call_id or call_id in self._calls:
            return
        self._calls[call_id] = _Call(name if isinstance(name, str) else "", len(self._calls), [])
        self.call_piece(call_id, "", is_first=True)

    def call_piece(self, call_id: object, piece: object, *, is_first: bool = False) -> None:
        """A piece of a call's arguments, which are JSON."""
        call = self._call(call_id)
        if call is None or not isinstance(piece, str) or not (piece or is_first):
            return
        self._has_calls_since_text = True
        call.arguments.append(piece)
        function = {"name": call.name, "arguments": piece}
        self.write(
            {
                "type": "tool_call",
                "index": call.index,
                "toolCall": {"id": call_id, "type": "function", "function": function},
            }
        )

    def end_call(self, call_id: object, value: object = None) -> None:
        """All arguments have come, in pieces or as a value. Whose the tool is, is not known yet."""
        call = self._call(call_id)
        if call is not None:
            if value is not None and not any(call.arguments):
                self.call_piece(call_id, _json(value))
            call.is_ended = True

    def offer_call(self, call_id: object) -> None:
        """The tool is for somebody in the session to run, if its arguments can be read."""
        call = self._call(call_id)
        if call is None or call.is_offered:
            return
        try:
            value = call.input
        except ValueError:
            return
        call.is_offered = True
        self.write({"type": "tool-input-available", "toolCallId": call_id, "toolName": call.name, "input": value})

    def ask(self, call_id: object, approval_id: object) -> None:
        """The tool may run when somebody approves of it."""
        call = self._call(call_id)
        if call is None or not isinstance(approval_id, str) or not approval_id:
            return
        try:
            value = call.input
        except ValueError:
            value = {}
        call.is_asked = True
        approval = {"id": approval_id, "needsApproval": True}
        asked = {"type": "approval-requested", "toolCallId": call_id, "toolName": call.name, "input": value}
        self.write({**asked, "approval": approval})

    def settle_call(self, call_id: object, output: object, error: object = None) -> None:
        """The agent has run a tool of its own."""
        if not isinstance(call_id, str) or not call_id:
            return
        call = self._call(call_id)
        if call is not None:
            call.is_settled = True
        failed = {} if error is None else {"error": as_text(error)}
        content = as_text({"error": failed["error"]}) if failed else as_text(output)
        self.write({"type": "tool_result", "toolCallId": call_id, "content": content, **failed})

    def finish(self, reason: object, usage: object = None, *, goes_on: bool = False) -> None:
        """The answer is whole, unless it goes on with what the tools gave. Where no reason is told, open calls tell it."""
        self._flush()
        if not goes_on:
            self.offer_calls()
        told = reason.replace("-", "_") if isinstance(reason, str) else None
        if told is None and self.has_open_calls:
            told = "tool_calls"
        counted = token_counts(usage)
        self.write(
            {
                "type": "done",
                "finishReason": told if told in FINISH_REASONS else None,
                **({"usage": counted} if counted else {}),
            }
        )
        if not goes_on:
            self.end("done")

    def end(self, by: EndReason) -> None:
        """Nothing comes after what was written."""
        self.ended_by = self.ended_by or by

    def fail(self, message: object, code: object = None) -> None:
        """The answer broke off."""
        self._flush()
        said = message if isinstance(message, str) and message else "the agent failed"
        named = {"code": code[:_MAX_CODE_CHARACTERS]} if isinstance(code, str) and code else {}
        self.write({"type": "error", "error": {"message": said[:_MAX_ERROR_CHARACTERS], **named}})
        self.end("error")

    def stop(self, reason: object = None) -> None:
        """The answer was broken off on purpose."""
        self._flush()
        self.write({"type": "stop", "reason": reason if isinstance(reason, str) and reason else "aborted"})
        self.end("stop")

    def note_call(self, call_id: object, name: object) -> None:
        """A call that is written in the agent's own words, here and from now on."""
        self._has_calls_since_text = True
        if isinstance(call_id, str) and call_id and call_id not in self._calls:
            self._calls[call_id] = _Call(name if isinstance(name, str) else "", len(self._calls), [])

    def whole_characters(self, kind: Literal["content", "thinking"], text: object) -> str:
        """What is whole of a text's next piece. The first half of a character, which some send alone, waits for the other."""
        if not isinstance(text, str):
            return ""
        joined = self._half[kind] + text
        is_half = "\ud800" <= joined[-1:] <= "\udbff"
        self._half[kind] = joined[-1] if is_half else ""
        return joined[:-1] if is_half else joined

    def write(self, fields: Fields) -> None:
        """A chunk as it is."""
        if self.ended_by is not None:
            return
        text = _json(fields)
        if not text.isascii():
            # JSON can spell halves of characters, which nobody can write.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        self._count += 1
        self._characters += len(text)
        self._written.append(text)
        if not self.is_too_large and (self._count > MAX_CHUNKS or self._characters > MAX_ANSWER_CHARACTERS):
            self.refuse_more()

    def refuse_more(self) -> None:
        """The answer is larger than it may be: it ends here."""
        self.is_too_large = True
        self.fail("the agent's answer is too large", "too_large")

    @property
    def has_open_calls(self) -> bool:
        """Whether the agent waits for somebody to run a tool."""
        return any(not call.is_settled for call in self._calls.values())

    def offer_calls(self) -> None:
        """The agent will not run the tools that it has not run by now."""
        for call_id, call in self._calls.items():
            if call.is_ended and not (call.is_settled or call.is_asked):
                self.offer_call(call_id)

    def _call(self, call_id: object) -> _Call | None:
        return self._calls.get(call_id) if isinstance(call_id, str) else None

    def _flush(self) -> None:
        self._half = dict.fromkeys(self._half, "")


def token_counts(usage: object) -> dict[str, int]:
    """Tokens as chunks tell them, out of any of their spellings."""
    if isinstance(usage, list):
        usage = usage[0] if usage else None
    if not isinstance(usage, dict):
        return {}
    found: dict[str, int] = {}
    for wanted, names in _TOKEN_NAMES.items():
        for name in names:
            count = usage.get(name)
            if type(count) is int and 0 <= count <= _MAX_TOKENS:
                found[wanted] = count
                break
    if "totalTokens" not in found and len(found) == 2:
        found["totalTokens"] = found["promptTokens"] + found["completionTokens"]
    return found


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
