"""`doctor`: does what stands before a server let streams through?"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from uuid import uuid4

import click

from streamkeep.client._command.examination import examine
from streamkeep.client._command.outcomes import EXIT_CODES, FAILED
from streamkeep.client._command.output import printable
from streamkeep.client._command.parameters import as_json
from streamkeep.client._command.server import StreamServer, server_options
from streamkeep.client._peer import checked_url
from streamkeep.client._rules.diagnosis import Finding, Verdict

_COLOURS = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BAD: "red"}

_EPILOG = f"""\
\b
Examples:
  streamkeep doctor https://streams.ours.example
  streamkeep doctor https://streams.ours.example --seconds 70 --origin https://app.ours.example
  streamkeep doctor --json | jq -r 'select(.verdict == "bad") | .advice'

It makes two streams of its own, appends to them, reads them live and at rest as clients do, and deletes them. What it
finds is what lies between here and the server: run it where your readers are, and once more beside the server.
The code is 1 when something is bad.

{EXIT_CODES}"""


@click.command("doctor", epilog=_EPILOG)
@click.argument("url", required=False)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 600),
    default=20.0,
    show_default=True,
    help="How long quiet connections must live. Some gateways cut them after 60.",
)
@click.option(
    "--origin", metavar="ORIGIN", default="https://app.example", show_default=True, help="Of pages that shall read."
)
@as_json
@server_options
def doctor(url: str | None, seconds: float, origin: str, as_json: bool, server: StreamServer) -> int:
    """Find out whether anything before a server buffers, compresses or cuts streams, and what to change.

    URL is the server as its readers reach it, like --server; the key goes there.
    """
    server = server if url is None else replace(server, url=url)
    address = checked_url(server.stream_url(f"doctor-{uuid4()}"))
    found: list[Finding] = []

    def report(finding: Finding) -> None:
        found.append(finding)
        _show(finding, as_json=as_json)

    asyncio.run(examine(address, server.headers_for(address), origin=origin, seconds=seconds, report=report))
    return FAILED if any(finding.verdict is Verdict.BAD for finding in found) else 0


def _show(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        click.echo(printable(json.dumps(asdict(finding), ensure_ascii=False)))
        return
    verdict = click.style(f"{finding.verdict:<4}", fg=_COLOURS[finding.verdict], bold=True)
    click.echo(f"{verdict} {finding.check:<15} {printable(finding.measured)}")
    if finding.advice is not None:
        click.echo(f"     {'':<15} → {printable(finding.advice)}")
