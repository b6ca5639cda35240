"""The group of all commands. Those of the server are loaded when they are run: a client's installation lacks what they need."""

from __future__ import annotations

from importlib.metadata import entry_points

import click

from streamkeep.client._command.chat import chat
from streamkeep.client._command.conformance import conformance
from streamkeep.client._command.doctor import doctor
from streamkeep.client._command.generations import active, cancel, fetch, generations, sessions
from streamkeep.client._command.outcomes import EXIT_CODES, MISUSED
from streamkeep.client._command.reading import read, tail
from streamkeep.client._command.sharing import share
from streamkeep.client._command.streams import close, create, delete, fork, info, list_streams
from streamkeep.client._command.subscriptions import subscribe, work
from streamkeep.client._command.writing import write

_SERVER_COMMANDS = {
    "serve": "Run the proxy.",
    "demo": "Watch answers survive, in the terminal or in a chat in the browser.",
    "vendor": "Serve a fake OpenAI and Anthropic API.",
    "keys": "Who may use the proxy.",
    "tenants": "Whose data stay, and how long.",
}

_REQUESTS = (fetch, active, cancel, sessions, generations)
_STREAMS = (create, write, read, tail, fork, close, delete, info, list_streams, share)
_SUBSCRIPTIONS = (subscribe, work)
_SESSIONS = (chat,)
_ANY_SERVER = (doctor, conformance)

_SECTIONS = {
    "Requests through the proxy": tuple(str(command.name) for command in _REQUESTS),
    "Streams": tuple(str(command.name) for command in _STREAMS),
    "Durable sessions": tuple(str(command.name) for command in _SESSIONS),
    "Subscriptions": tuple(str(command.name) for command in _SUBSCRIPTIONS),
    "The server": (*_SERVER_COMMANDS, *(str(command.name) for command in _ANY_SERVER)),
}

_EPILOG = f"""\
\b
A first look:
  streamkeep demo
  streamkeep serve

\b
Environment:
  STREAM_URL      the server (http://127.0.0.1:4000)
  STREAMKEEP_KEY  its key, where it wants one

{EXIT_CODES}"""


class Formatter(click.HelpFormatter):
    """click's pages with bold headings."""

    def write_heading(self, heading: str) -> None:
        super().write_heading(click.style(heading, bold=True))


class ServerNotInstalled(click.ClickException):
    """The command needs what the extra `proxy` brings."""

    exit_code = MISUSED

    def __init__(self, name: str) -> None:
        super().__init__(f"`{name}` needs the server, which is not installed: pip install 'streamkeep[proxy]'")


class Commands(click.Group):
    """The commands in sections."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in _SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _SERVER_COMMANDS:
            return super().get_command(ctx, name)
        (entry,) = entry_points(group="streamkeep.commands", name=name)
        try:
            command: click.Command = entry.load()
        except ImportError as exc:
            raise ServerNotInstalled(name) from exc
        return command

    def invoke(self, ctx: click.Context) -> int:
        try:
            code: int | None = super().invoke(ctx)
            return code or 0
        except ModuleNotFoundError as exc:
            raise ServerNotInstalled(str(ctx.invoked_subcommand)) from exc

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in _SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, self._summary(name)) for name in names])

    def _summary(self, name: str) -> str:
        return _SERVER_COMMANDS.get(name) or self.commands[name].get_short_help_str(limit=80)


@click.group(
    "streamkeep",
    cls=Commands,
    commands=[*_REQUESTS, *_SESSIONS, *_STREAMS, *_SUBSCRIPTIONS, *_ANY_SERVER],
    epilog=_EPILOG,
)
@click.version_option(package_name="streamkeep", message="streamkeep %(version)s")
def commands() -> None:
    """Requests whose responses survive broken connections, refreshes and crashes; and streams that outlive programs."""
