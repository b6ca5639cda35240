"""`chat`: take part in a session, on a terminal with keys and a live view, elsewhere line by line."""

from __future__ import annotations

import asyncio
import getpass
import json
import sys
import uuid
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

import click

from streamkeep.client._chat import AsyncDurableChat
from streamkeep.client._command.chat_lines import Lines
from streamkeep.client._command.outcomes import EXIT_CODES, note
from streamkeep.client._command.server import StreamServer, header, server_options
from streamkeep.client._rules.session_calls import AgentSpec
from streamkeep.sessions.agents import AgentFormat

if TYPE_CHECKING:
    from streamkeep.client._command.chat_screen import Screen

_EPILOG = f"""\
\b
Examples:
  streamkeep chat --new kitchen --agent http://127.0.0.1:4001/v1/chat/completions --model demo
  streamkeep chat kitchen --name Ann
  echo "What shall we cook?" | streamkeep chat kitchen
  streamkeep chat --new --agent gpt=https://api.openai.com/v1/chat/completions \\
      --model gpt-5-mini --agent-header "Authorization: Bearer $OPENAI_API_KEY"

\b
Everybody in a session sees the same, live, and may leave and come back. Lines are messages, but for:
  /stop  /regenerate  /approve  /deny  /fork  /agents  /who  /rename  /help  /quit

Without a terminal each line of standard input is sent when the one before was answered, and what others and agents
write is printed; the exit code tells how the last answer ended.

{EXIT_CODES}"""


@click.command("chat", epilog=_EPILOG)
@click.argument("session", required=False)
@click.option("--new", "is_new", is_flag=True, help="Make the session; without an id, with one of its own.")
@click.option("--name", help="How you are called (your login).")
@click.option("--as", "actor_id", metavar="ID", help="Who you are to the session (your name).")
@click.option("--agent", "agents", metavar="[ID=]URL", multiple=True, help="An endpoint that answers; may be repeated.")
@click.option(
    "--agent-header", "headers", metavar="'Name: value'", multiple=True, help="Sent to these agents; kept secret."
)
@click.option("--agent-body", "body", metavar="JSON", help="What else goes along in each request to these agents.")
@click.option("--agent-format", "format", type=click.Choice(get_args(AgentFormat)), help="How these agents are told.")
@click.option("--model", help="The `model` in each request to these agents.")
@click.option("--triggers", type=click.Choice(["all", "user-messages"]), help="What wakes these agents.")
@click.option(
    "-n", "--last", type=click.IntRange(0, 10_000), help="Show the last so many messages first (20 on a terminal)."
)
@click.option("--json", "as_json", is_flag=True, help="Messages as JSON, one a line.")
@server_options
def chat(
    session: str | None,
    is_new: bool,
    name: str | None,
    actor_id: str | None,
    agents: tuple[str, ...],
    headers: tuple[str, ...],
    body: str | None,
    format: AgentFormat | None,
    model: str | None,
    triggers: str | None,
    last: int | None,
    as_json: bool,
    server: StreamServer,
) -> int:
    """Take part in a session."""
    if session is None and not is_new:
        raise click.UsageError("name a SESSION, or make one with --new")
    template = _template(body, model)
    given = [_agent(text, headers, template, format, triggers) for text in agents]
    if not given and (headers or template or format or triggers):
        raise click.UsageError(
            "--agent-header, --agent-body, --agent-format, --model and --triggers say something of an --agent"
        )
    name = name or _login()
    if session is None:
        session = f"chat-{uuid.uuid4()}"
        note(f"the session is {session}")
    return asyncio.run(
        _talk(
            session,
            server,
            given,
            name=name,
            actor_id=actor_id or _subject(server) or name,
            is_new=is_new,
            last=last,
            as_json=as_json,
        )
    )


async def _talk(
    session_id: str,
    server: StreamServer,
    agents: list[AgentSpec],
    *,
    name: str,
    actor_id: str,
    is_new: bool,
    last: int | None,
    as_json: bool,
) -> int:
    headers = dict(server.headers_for(server.base))
    goes_to: str | int = session_id
    with _place(last, as_json=as_json) as place:
        while isinstance(goes_to, str):
            async with AsyncDurableChat(
                server.base, goes_to, create=is_new, headers=headers, name=name, actor_id=actor_id
            ) as chat:
                if agents:
                    await chat.register_agents(agents)
                goes_to = await place.talk(chat)
            # Where a branch leads, the agents go along.
            agents, is_new = [], False
    return goes_to


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # as in a container whose user has no name
        return "somebody"


def _subject(server: StreamServer) -> str | None:
    """Of whom the key speaks, where it is a token of somebody's: nobody else may then be named."""
    subject = server.ask("GET", "/api/whoami").get("subject")
    return subject if isinstance(subject, str) else None


def _place(last: int | None, *, as_json: bool) -> Lines | Screen:
    if as_json or sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Lines(last=last or 0, as_json=as_json)
    # Loaded here, since not every system has terminals of this kind.
    from streamkeep.client._command.chat_screen import Screen

    return Screen(last=20 if last is None else last)


def _agent(
    text: str,
    headers: tuple[str, ...],
    template: dict[str, Any] | None,
    format: AgentFormat | None,
    triggers: str | None,
) -> AgentSpec:
    named, _, rest = text.partition("=")
    agent_id, url = (named, rest) if rest.startswith(("http://", "https://")) and "/" not in named else ("", text)
    host = urlsplit(url).hostname
    if not url.startswith(("http://", "https://")) or not host:
        raise click.UsageError("--agent is a URL, or ID=URL")
    return AgentSpec(
        agent_id or host,
        url,
        headers=dict(header(line) for line in headers),
        body_template=template,
        format=format,
        triggers="all" if triggers == "all" else "user-messages" if triggers else None,
    )


def _template(body: str | None, model: str | None) -> dict[str, Any] | None:
    try:
        template = json.loads(body or "{}")
    except ValueError:
        raise click.UsageError("--agent-body is not JSON") from None
    if not isinstance(template, dict):
        raise click.UsageError("--agent-body is a JSON object")
    return template | ({} if model is None else {"model": model}) or None
