"""A session's messages as text for people. Whatever a terminal would obey instead of showing it is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable

from streamkeep.client._command.output import printable
from streamkeep.sessions.views import Message, OtherPart, Part, Participant, TextPart, ThinkingPart, ToolCallPart

_ARGUMENT_CHARACTERS = 200


def name_of(message: Message, participants: Iterable[Participant]) -> str:
    """How a message's author is called."""
    known = next((one.name for one in participants if one.actor_id == message.actor_id), None)
    return printable(message.actor_name or known or message.actor_id)


def lines(text: str) -> str:
    """A text of several lines."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.replace("\r\n", "\n").split("\n"))


def spoken(message: Message) -> str:
    """All that a message says, a tool call in a line of its own; and how it ended, where that was not well."""
    told = [part for part in map(_part, message.parts) if part]
    if message.ended_by == "error":
        told.append(f"✗ {printable(message.error or 'it failed')}")
    elif message.ended_by == "stop":
        told.append("■ stopped")
    return "\n".join(told)


def arguments_of(value: object) -> str:
    """A tool's arguments, or its result, in one line."""
    if isinstance(value, dict):
        text = ", ".join(f"{name}={_json(one)}" for name, one in value.items())
    else:
        text = "" if value is None else _json(value)
    return shortened(printable(text))


def shortened(text: str) -> str:
    return text if len(text) <= _ARGUMENT_CHARACTERS else f"{text[: _ARGUMENT_CHARACTERS - 1]}…"


def _part(part: Part) -> str:
    match part:
        case TextPart(content=content):
            return lines(content)
        case ThinkingPart():
            return ""
        case ToolCallPart():
            return _call(part)
        case OtherPart(value=value):
            return f"[{printable(value.get('type', 'a part'))}]"
        case _:
            return f"  → {shortened(printable(part.error or part.content))}"


def _call(part: ToolCallPart) -> str:
    try:
        told = arguments_of(json.loads(part.arguments))
    except (ValueError, RecursionError):
        told = shortened(printable(part.arguments))
    answer = {None: "", True: "  ✓ allowed", False: "  ✗ denied"}
    approved = None if part.approval is None else part.approval.approved
    return f"⚙ {printable(part.name)}({told}){answer[approved]}"


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "…"


class Told:
    """What was shown of messages already, so that each thing they say is shown once."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._lines

    def news(self, message: Message) -> str:
        """What is to be shown of a complete message: all of it the first time, then what was added."""
        known = self._lines.get(message.id, [])
        said = self._lines[message.id] = spoken(message).split("\n")
        return "\n".join(said if not known else [line for line in said if line not in known])

    def forget(self, message_id: str) -> bool:
        """The message is gone; whether it had been shown."""
        return self._lines.pop(message_id, None) is not None
