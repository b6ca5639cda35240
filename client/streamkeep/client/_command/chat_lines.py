"""A chat without a terminal: lines in, messages out."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import click

from streamkeep.client._chat import AsyncDurableChat
from streamkeep.client._command.chat_orders import asked, author_of, obey, open_approvals, waits
from streamkeep.client._command.chat_text import Told
from streamkeep.client._command.outcomes import ANSWER_ENDS, note
from streamkeep.client._errors import ConnectionFailed
from streamkeep.client._rules.chats import ChatChanges
from streamkeep.sessions.views import as_json

T = TypeVar("T")


class Lines:
    """Sends each line of standard input when the one before it was answered, and prints what others write."""

    def __init__(self, *, last: int, as_json: bool) -> None:
        self._last = last
        self._as_json = as_json
        self._told = Told()
        self._asked: set[str] = set()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._code = 0

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        # A thread, since a file cannot be waited for, and one that is left behind, since it cannot be woken.
        threading.Thread(target=self._read, args=(loop,), name="streamkeep-input", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def talk(self, chat: AsyncDurableChat) -> str | int:
        """Until the input ends and all is answered: the exit code; or until another session is gone to: its id."""
        self._begin(chat)
        printing = asyncio.create_task(self._print_all(chat))
        try:
            while (line := await _unless_over(self._lines.get(), printing)) is not None:
                if waits(line):
                    await _unless_over(chat.wait_until_idle(), printing)
                obeyed = await obey(chat, line)
                for told in obeyed.notes:
                    note(told)
                if obeyed.goes_to is not None:
                    return obeyed.goes_to
                if obeyed.quits:
                    return 0
            await _unless_over(chat.wait_until_idle(), printing)
            self._print(chat, ChatChanges(tuple(message.id for message in chat.messages)))
        finally:
            printing.cancel()
            await asyncio.wait([printing])
        return self._code

    def _begin(self, chat: AsyncDurableChat) -> None:
        old = [message for message in chat.messages if message.is_complete and message.id not in self._told]
        shown, self._last = old[len(old) - min(self._last, len(old)) :], 0
        for message in old:
            text = self._told.news(message)
            if message in shown:
                self._write(chat, message.id, text)

    async def _print_all(self, chat: AsyncDurableChat) -> None:
        self._print(chat, ChatChanges())
        async for changes in chat.changes():
            self._print(chat, changes)

    def _print(self, chat: AsyncDurableChat, changes: ChatChanges) -> None:
        for message_id in changes.message_ids:
            message = chat.message(message_id)
            if message is None or not message.is_complete:
                continue
            is_new = message.id not in self._told
            text = self._told.news(message)
            if text and (message.actor_id != chat.actor_id or self._as_json):
                self._write(chat, message_id, text)
            if is_new and message.role == "assistant":
                self._code = ANSWER_ENDS.get(message.ended_by or "", 0)
        for approval in open_approvals(chat):
            if approval.id not in self._asked:
                self._asked.add(approval.id)
                note(f"{asked(approval)} waits for /approve {approval.id} or /deny {approval.id}")

    def _write(self, chat: AsyncDurableChat, message_id: str, text: str) -> None:
        message = chat.message(message_id)
        assert message is not None, "what is written was looked at just now"
        if self._as_json:
            click.echo(json.dumps(as_json(message)))
        else:
            click.echo(f"{author_of(chat, message)}: {text}")

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # of a loop that is closed: nobody waits for it any more
            for line in sys.stdin or ():
                if line.strip():
                    loop.call_soon_threadsafe(self._lines.put_nowait, line.rstrip("\r\n"))
            loop.call_soon_threadsafe(self._lines.put_nowait, None)


async def _unless_over(wanted: Coroutine[Any, Any, T], following: asyncio.Task[None]) -> T:
    """What is wanted, unless the session is over first. Raises: what ended it."""
    waiting = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait([waiting, following], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            following.result()
            raise ConnectionFailed("the session's stream was closed")
        return waiting.result()
    finally:
        waiting.cancel()
