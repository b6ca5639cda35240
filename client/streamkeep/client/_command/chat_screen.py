"""A chat on a terminal: what was said scrolls by, and below it stands what is going on, and the line that is typed.

Keys are read one by one. The view is drawn anew when something has changed, a few times a second at most.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from streamkeep.client._chat import AsyncDurableChat
from streamkeep.client._command.chat_orders import Obeyed, asked, author_of, obey, open_approvals
from streamkeep.client._command.chat_text import Told, lines, spoken
from streamkeep.client._command.output import printable
from streamkeep.client._errors import StreamkeepError
from streamkeep.client._rules.chats import ChatChanges
from streamkeep.client._rules.line_editor import Ended, LineEditor, Meant, Pressed, Submitted
from streamkeep.client._rules.presence import TYPING_STALE_SECONDS
from streamkeep.sessions.views import Message

_FRAME_SECONDS = 0.05
_IDLE_SECONDS = 1.0
_KEYS_BYTES = 4096
_ROOM_LINES = 8
_COLOURS = ("green", "yellow", "blue", "magenta", "bright_green", "bright_blue", "bright_magenta")
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_STATUS_COLOURS = {"connected": "green", "connecting": "yellow", "disconnected": "yellow", "error": "red"}


class Screen:
    """The terminal that standard input and output are on, for as long as it is entered."""

    def __init__(self, *, last: int) -> None:
        self._last = last
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._keys = os.dup(sys.stdin.fileno())
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._editor = LineEditor()
        self._told = Told()
        self._news = asyncio.Event()
        self._doing: set[asyncio.Task[None]] = set()
        self._ends_with: str | int | None = None
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._keys)
        tty.setcbreak(self._keys)
        self._console.file.write(_PASTE_ON)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()
        self._console.file.write(_PASTE_OFF)
        self._console.file.flush()
        termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)
        os.close(self._keys)

    async def talk(self, chat: AsyncDurableChat) -> str | int:
        """Until somebody leaves: 0; or goes to another session: its id. Raises: what ended the session."""
        self._ends_with = None
        self._begin(chat)
        chat.announce()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._keys, self._read_keys, chat)
        following = asyncio.create_task(self._follow(chat))
        try:
            while self._ends_with is None:
                if following.done():
                    following.result()
                    return 0
                self._live.update(self._view(chat), refresh=True)
                await asyncio.sleep(_FRAME_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_IDLE_SECONDS):
                        await self._news.wait()
                self._news.clear()
            return self._ends_with
        finally:
            loop.remove_reader(self._keys)
            for task in (following, *self._doing):
                task.cancel()
            await asyncio.wait([following, *self._doing])

    def _begin(self, chat: AsyncDurableChat) -> None:
        old = [message for message in chat.messages if message.is_complete and message.id not in self._told]
        hidden = len(old) - min(self._last, len(old))
        for index, message in enumerate(old):
            text = self._told.news(message)
            if index >= hidden:
                self._say(chat, message, text)
        self._last = len(old)

    async def _follow(self, chat: AsyncDurableChat) -> None:
        async for changes in chat.changes():
            self._tell(chat, changes)
            self._news.set()

    def _tell(self, chat: AsyncDurableChat, changes: ChatChanges) -> None:
        """Let what was said scroll by, once it is complete and the stream has it."""
        pending = {write.id for write in chat.pending_writes}
        for message_id in changes.message_ids:
            message = chat.message(message_id)
            if message is None:
                if self._told.forget(message_id):
                    self._print(chat, Text("a message was taken back", style="dim"))
            elif message.is_complete and message_id not in pending:
                was_told = message_id in self._told
                text = self._told.news(message)
                if was_told and text:
                    self._print(chat, Text(text, style="dim"))
                elif not was_told:
                    self._say(chat, message, text)

    def _say(self, chat: AsyncDurableChat, message: Message, text: str) -> None:
        self._print(chat, _line(author_of(chat, message), _style(chat, message), text))

    def _print(self, chat: AsyncDurableChat, text: Text) -> None:
        # What is going on is drawn below it again, and must not show what scrolls by now.
        self._live.update(self._view(chat))
        self._console.print(text)

    # Keys

    def _read_keys(self, chat: AsyncDurableChat) -> None:
        data = os.read(self._keys, _KEYS_BYTES)
        typed = self._decoder.decode(data)
        watched = "yn" if open_approvals(chat) else ""
        before = self._editor.text
        for meant in self._editor.feed(typed, watched=watched) if data else [Ended()]:
            self._mean(chat, meant)
        if self._editor.text != before and not self._editor.text.startswith("/"):
            chat.typing(bool(self._editor.text))
        self._news.set()

    def _mean(self, chat: AsyncDurableChat, meant: Meant) -> None:
        match meant:
            case Submitted(text):
                self._start(chat, text)
            case Pressed(character):
                self._start(chat, "/approve" if character == "y" else "/deny")
            case Ended():
                self._ends_with = 0

    def _start(self, chat: AsyncDurableChat, line: str) -> None:
        task = asyncio.create_task(self._obey(chat, line))
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _obey(self, chat: AsyncDurableChat, line: str) -> None:
        try:
            obeyed = await obey(chat, line)
        except (StreamkeepError, httpx.TransportError, ValueError) as exc:
            self._print(chat, Text(f"✗ {lines(str(exc))}", style="red"))
            obeyed = Obeyed()
        for told in obeyed.notes:
            self._print(chat, Text(lines(told), style="dim"))
        if obeyed.goes_to is not None:
            self._ends_with = obeyed.goes_to
        elif obeyed.quits:
            self._ends_with = 0
        self._news.set()

    # What is going on

    def _view(self, chat: AsyncDurableChat) -> Group:
        room = max(3, self._console.size.height - _ROOM_LINES)
        return Group(_Tail(list(self._open(chat)), room), *self._footer(chat))

    def _open(self, chat: AsyncDurableChat) -> Iterator[Text]:
        """Messages that are being written, and those that are on their way."""
        status = {write.id: write.status for write in chat.pending_writes if write.kind == "message"}
        writing = {one.message_id for one in chat.active_generations}
        for message_id in dict.fromkeys((*writing, *status)):
            message = chat.message(message_id)
            if message is None:
                continue
            told = _line(author_of(chat, message), _style(chat, message), spoken(message))
            if message_id in status:
                told.append(f"  ({status[message_id]})", style="dim")
            yield told

    def _footer(self, chat: AsyncDurableChat) -> Iterator[RenderableType]:
        for approval in open_approvals(chat):
            yield Text.assemble(("? ", "bold yellow"), asked(approval), ("  y/n", "bold yellow"))
        busy = ", ".join(self._busy(chat))
        if busy:
            yield Text(busy, style="italic dim")
        status = chat.connection_status
        name = chat.session.name if chat.session is not None and chat.session.name else chat.session_id
        here = ", ".join(printable(one.name or one.actor_id) for one in self._present(chat))
        yield Text.assemble(
            ("● ", _STATUS_COLOURS[status]),
            (f"{printable(name)} · {status}{f' · {here}' if here else ''} · /help", "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )
        yield self._prompt()

    def _busy(self, chat: AsyncDurableChat) -> Iterator[str]:
        names = {one.id: one.name or one.id for one in chat.agents}
        for actor_id in dict.fromkeys(one.actor_id for one in chat.active_generations):
            yield f"{printable(names.get(actor_id, actor_id))} is writing"
        now = datetime.now(UTC)
        for one in chat.presence:
            if (
                one.typing
                and one.actor_id != chat.actor_id
                and not one.is_stale(now, after_seconds=TYPING_STALE_SECONDS)
            ):
                yield f"{printable(one.name or one.actor_id)} is typing"

    def _present(self, chat: AsyncDurableChat) -> list[Any]:
        now = datetime.now(UTC)
        return [one for one in chat.presence if one.status != "offline" and not one.is_stale(now)]

    def _prompt(self) -> Text:
        text, cursor = self._editor.text, self._editor.cursor
        under = text[cursor : cursor + 1].replace("\n", " ") or " "
        return Text.assemble(("> ", "bold"), lines(text[:cursor]), (lines(under), "reverse"), lines(text[cursor + 1 :]))


class _Tail:
    """The last lines of what is being written."""

    def __init__(self, texts: list[Text], room: int) -> None:
        self._texts = texts
        self._room = room

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rendered = [line for text in self._texts for line in console.render_lines(text, options, pad=False)]
        for line in rendered[-self._room :]:
            yield from line
            yield Segment.line()


def _line(author: str, style: str, text: str) -> Text:
    told = Text.assemble((author, f"bold {style}"), ": ")
    return told.append(Text(text))


def _style(chat: AsyncDurableChat, message: Message) -> str:
    if message.role == "assistant":
        return "cyan"
    if message.actor_id == chat.actor_id:
        return "white"
    return _COLOURS[sum(message.actor_id.encode("utf-8", "replace")) % len(_COLOURS)]
