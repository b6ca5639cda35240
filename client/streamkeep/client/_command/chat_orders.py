"""What somebody types into a chat: a message, or an order that begins with a slash."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from streamkeep.client._chat import AsyncDurableChat
from streamkeep.client._command.chat_text import arguments_of, name_of
from streamkeep.sessions.views import Approval, Message

HELP = (
    "/stop                stop the answers that are being written",
    "/regenerate [TEXT]   have the last message answered again, or TEXT in its place",
    "/approve, /deny [ID] answer an approval, the oldest by default (or y and n in an empty line)",
    "/fork [NAME]         go on in a branch of this session",
    "/agents              who answers",
    "/who                 who is here, and who was",
    "/rename NAME         give the session a name",
    "/quit                leave",
)


@dataclass(frozen=True, slots=True)
class Obeyed:
    """What came of it: notes for whoever typed it, another session to go to, or the end."""

    notes: tuple[str, ...] = ()
    goes_to: str | None = None
    quits: bool = False


async def obey(chat: AsyncDurableChat, line: str) -> Obeyed:
    """Do what a line says. Raises: StreamkeepError."""
    if not line.startswith("/") or line.startswith("//"):
        await chat.send_message(line.removeprefix("/"))
        return Obeyed()
    name, _, rest = line[1:].partition(" ")
    order = _ORDERS.get(name)
    if order is None:
        return Obeyed((f"there is no /{name}; /help tells what there is",))
    return await order(chat, rest.strip())


def waits(line: str) -> bool:
    """Whether a line is to be obeyed only when nobody is writing any more."""
    return line.split(" ")[0] not in ("/stop", "/quit", "/exit")


def open_approvals(chat: AsyncDurableChat) -> list[Approval]:
    """Those that nobody has answered, oldest first."""
    return [approval for approval in chat.approvals if approval.status == "pending"]


def asked(approval: Approval) -> str:
    """An approval as a question."""
    return f"{approval.tool_name}({arguments_of(approval.input)})"


async def _help(chat: AsyncDurableChat, rest: str) -> Obeyed:
    return Obeyed(HELP)


async def _stop(chat: AsyncDurableChat, rest: str) -> Obeyed:
    await chat.stop()
    return Obeyed()


async def _regenerate(chat: AsyncDurableChat, rest: str) -> Obeyed:
    if not any(message.role == "user" for message in chat.messages):
        return Obeyed(("nothing was asked yet",))
    await chat.regenerate(content=rest or None)
    return Obeyed()


def _answers(approved: bool) -> Callable[[AsyncDurableChat, str], Awaitable[Obeyed]]:
    async def answer(chat: AsyncDurableChat, rest: str) -> Obeyed:
        found = [approval for approval in open_approvals(chat) if rest in ("", approval.id)]
        if not found:
            return Obeyed(("nobody asks for an approval",))
        await chat.add_tool_approval_response(found[0].id, approved)
        return Obeyed()

    return answer


async def _fork(chat: AsyncDurableChat, rest: str) -> Obeyed:
    session_id = await chat.fork(name=rest or None)
    return Obeyed((f"this is {session_id} now, a branch of {chat.session_id}",), goes_to=session_id)


async def _agents(chat: AsyncDurableChat, rest: str) -> Obeyed:
    told = (f"{agent.name or agent.id}  {agent.endpoint}  {agent.triggers or ''}".rstrip() for agent in chat.agents)
    return Obeyed(tuple(told) or ("no agents; --agent URL adds one",))


async def _who(chat: AsyncDurableChat, rest: str) -> Obeyed:
    status = {one.actor_id: one.status for one in chat.presence}
    told = (
        f"{one.name or one.actor_id}  {status.get(one.actor_id, 'offline')}  {count_of(one.message_count)}"
        for one in chat.participants
    )
    return Obeyed(tuple(told) or ("nobody yet",))


async def _rename(chat: AsyncDurableChat, rest: str) -> Obeyed:
    if not rest:
        return Obeyed(("/rename NAME",))
    await chat.rename(rest)
    return Obeyed((f"the session is called {rest} now",))


async def _quit(chat: AsyncDurableChat, rest: str) -> Obeyed:
    return Obeyed(quits=True)


def count_of(messages: int) -> str:
    return f"{messages} message{'' if messages == 1 else 's'}"


def author_of(chat: AsyncDurableChat, message: Message) -> str:
    """Whoever wrote a message, as he is called."""
    return name_of(message, chat.participants)


_ORDERS: dict[str, Callable[[AsyncDurableChat, str], Awaitable[Obeyed]]] = {
    "help": _help,
    "stop": _stop,
    "regenerate": _regenerate,
    "reload": _regenerate,
    "approve": _answers(True),
    "deny": _answers(False),
    "fork": _fork,
    "agents": _agents,
    "who": _who,
    "rename": _rename,
    "quit": _quit,
    "exit": _quit,
}
