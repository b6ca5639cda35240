"""`streamkeep demo`: one of the demos, until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from streamkeep.demos import terminal
from streamkeep.demos.catalogue import DEMOS, TERMINAL, Demo, find
from streamkeep.demos.model import ModelChoice, ModelError

if TYPE_CHECKING:
    from streamkeep.demos.stage import Addresses

_EPILOG = """\
\b
  streamkeep demo --list
  streamkeep demo chat-vercel
  streamkeep demo chat-vercel --vendor https://api.openai.com/v1 --model gpt-4o-mini
  streamkeep demo chat-vercel --llm

A fake model answers, and no key is needed. With --vendor the key is taken from OPENAI_API_KEY. With --llm a small real
model runs on this machine, from the packages of the extra `llm`; it has no tools.

Nothing is left behind: what the demos record is kept in memory, or in a temporary folder.
"""


@click.command("demo", epilog=_EPILOG)
@click.argument("name", type=click.Choice([demo.name for demo in DEMOS]), default=TERMINAL.name)
@click.option("--list", "is_list", is_flag=True, help="Which demos there are.")
@click.option("--tokens", type=click.IntRange(1, 100_000), help="Length of the fake model's answer.")
@click.option("--rate", type=click.FloatRange(0.1, 10_000), default=30, show_default=True, help="Tokens a second.")
@click.option("--port", type=click.IntRange(0, 65535), help="Of the page; 0 for a free one.")
@click.option("--vendor", metavar="URL", help="A server of OpenAI's chat API, up to /v1, instead of the fake model.")
@click.option("--model", metavar="NAME", default="demo", show_default=True, help="The model to ask for.")
@click.option("--llm", "is_local", is_flag=True, help="A small real model on this machine.")
@click.option("--open", "is_open", is_flag=True, help="Open the page in the browser.")
@click.pass_obj
def demo_command(
    environ: Mapping[str, str],
    /,
    name: str,
    is_list: bool,
    tokens: int | None,
    rate: float,
    port: int | None,
    vendor: str | None,
    model: str,
    is_local: bool,
    is_open: bool,
) -> int:
    """Watch answers survive: in the terminal, or in a chat in the browser."""
    if is_list:
        _list()
        return 0
    if find_spec("uvicorn") is None:
        raise ModuleNotFoundError("the demos need the server")
    demo = find(name)
    if demo.port is None:
        if port is not None or vendor is not None or is_local or is_open:
            raise click.UsageError(f"{name} has no page, and asks the fake model alone")
        return terminal.run(environ, tokens=tokens or 120, rate=rate)
    key = environ.get("OPENAI_API_KEY", "none")
    if is_local and find_spec("xllamacpp") is None:
        raise click.UsageError("--llm needs a package more: pip install 'streamkeep[llm]' (about 300 MB)")
    if is_local:
        click.echo("Starting the model; its file of 250 MB is made at the first time.")
    choice = ModelChoice(vendor and vendor.rstrip("/"), model, key, tokens or 400, rate, is_local)
    return asyncio.run(_run(demo, choice, demo.port if port is None else port, is_open=is_open))


async def _run(demo: Demo, choice: ModelChoice, port: int, *, is_open: bool) -> int:
    from streamkeep.demos.stage import staged

    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        async with staged(demo, choice, port) as addresses:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stopped.set)
            _announce(demo, choice, addresses)
            if is_open:
                click.launch(addresses.page)
            await stopped.wait()
    except ModelError as exc:
        click.echo(f"streamkeep demo: {exc}", err=True)
        return 1
    except OSError as exc:
        click.echo(f"streamkeep demo: port {port}: {exc.strerror or exc}", err=True)
        click.echo(f"Another one: {demo.command} --port {port + 100}, or --port 0 for any that is free", err=True)
        return 1
    return 0


def _announce(demo: Demo, choice: ModelChoice, addresses: Addresses) -> None:
    is_fake = choice.url is None and not choice.is_local
    model = f"a fake one at {addresses.model}, no key needed" if is_fake else addresses.model
    click.secho(f"{demo.title}: open {addresses.page}", bold=True)
    click.echo(f"  proxy    {addresses.proxy}, which the page reaches by the line at {addresses.line}")
    click.echo(f"  model    {model}")
    click.echo(f"  demos    {addresses.page}/gallery")
    click.echo("Stop: Ctrl-C")


def _list() -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for demo in DEMOS:
        table.add_row(f"[bold]{demo.name}[/bold]", f"port {demo.port}" if demo.port else "terminal", demo.summary)
    Console().print(table)
    click.echo("\nRun one: streamkeep demo NAME")
