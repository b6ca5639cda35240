"""`doctor`, before servers that are reached directly, through gateways that do harm, and through nginx."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from streamkeep.client._command.examination import examine
from streamkeep.client._rules.diagnosis import Finding, Verdict
from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage import MemoryStore
from tests.client.commands import Program
from tests.gateway import gateway
from tests.nginx import EXAMPLE, NGINX, in_front_of
from tests.serving import Proxy, serving

KEY = 32 * "a"
ORIGIN = "http://localhost:3000"
NGINX_AS_IT_COMES = """
upstream theirs { server 127.0.0.1:4000; }
server {
    listen 80;
    location / { proxy_pass http://theirs; }
}
"""
HURRIED_NGINX = NGINX_AS_IT_COMES.replace("listen 80;", "listen 80; proxy_read_timeout 1s;")
COMPRESSING_NGINX = NGINX_AS_IT_COMES.replace(
    "listen 80;", "listen 80; gzip on; gzip_types text/event-stream; gzip_proxied any; gzip_http_version 1.0;"
)

# Stands before the server at a URL; gives the URL of the door.
Front = Callable[[str], AbstractAsyncContextManager[str]]


async def examined(url: str, *, seconds: float = 1.0, key: str | None = None) -> dict[str, Finding]:
    """What is found through a front door, by check."""
    found: list[Finding] = []
    headers = {} if key is None else {"Streamkeep-Key": key}
    stream = f"{url}/v1/stream/doctor-{uuid.uuid4()}"
    await examine(stream, headers, origin=ORIGIN, seconds=seconds, report=found.append)
    return {finding.check: finding for finding in found}


def bad(found: dict[str, Finding]) -> set[str]:
    return {check for check, finding in found.items() if finding.verdict is Verdict.BAD}


async def test_a_server_that_nothing_stands_before_is_well(run: Program, proxy: Proxy) -> None:
    """And nothing is left on it."""
    ended = await run("doctor", proxy.url, "--seconds", "3", "--origin", ORIGIN)
    assert (ended.code, ended.err) == (0, "")
    lines = {line[5:20].strip(): line[:4].strip() for line in ended.text.splitlines()}
    checks = ["connection", "address", "bytes", "headers", "revalidation", "ranges", "browsers", "upload", "HEAD"]
    assert lines == dict.fromkeys([*checks, "long-polls", "events", "quiet events", "quiet long-poll"], "ok")
    assert "\x1b" not in ended.text
    listed = (await run.here("list", "doctor-*")).text
    assert listed == ""


async def test_findings_are_json_a_line(run: Program, proxy: Proxy) -> None:
    async with gateway(proxy.url, drops=frozenset({"stream-next-offset"})) as url:
        ended = await run.here("doctor", "--server", url, "--seconds", "1", "--json")
    found = {line["check"]: line for line in ended.json_lines}
    assert (ended.code, found["headers"]["verdict"], found["address"]["verdict"]) == (1, "bad", "ok")
    assert "Stream-…" in found["headers"]["advice"]


def through_gateway(**faults: object) -> Front:
    return lambda url: gateway(url, **faults)


@asynccontextmanager
async def through_nginx(url: str, configuration: str) -> AsyncIterator[str]:
    async with in_front_of(url, configuration) as front:
        yield front.url


FRONTS: dict[str, Front] = {
    "harmless": through_gateway(),
    "buffers": through_gateway(buffers=True),
    "compresses": through_gateway(compresses=True),
    "compresses all": through_gateway(compresses_all=True),
    "cuts": through_gateway(cuts_after_seconds=0.7),
    "exposes nothing": through_gateway(drops=frozenset({"access-control-expose-headers"})),
    "refuses HEAD": through_gateway(refuses=frozenset({"HEAD"})),
}
NGINX_FRONTS: dict[str, Front] = {
    "as it comes": lambda url: through_nginx(url, NGINX_AS_IT_COMES),
    "hurried": lambda url: through_nginx(url, HURRIED_NGINX),
    "compressing": lambda url: through_nginx(url, COMPRESSING_NGINX),
    "our example": lambda url: through_nginx(url, EXAMPLE),
}


async def all_examined(proxy: Proxy, fronts: dict[str, Front]) -> dict[str, dict[str, Finding]]:
    """At once, since most of it is waiting."""

    async def one(name: str) -> dict[str, Finding]:
        async with fronts[name](proxy.url) as url:
            # Where connections are cut, the examination ends with them.
            return await examined(url, seconds=20.0 if name in ("cuts", "hurried") else 1.5)

    return dict(zip(fronts, await asyncio.gather(*map(one, fronts)), strict=True))


@pytest.fixture(scope="module")
async def gateways(proxy: Proxy) -> dict[str, dict[str, Finding]]:
    return await all_examined(proxy, FRONTS)


@pytest.fixture(scope="module")
async def nginxes(proxy: Proxy) -> dict[str, dict[str, Finding]]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    return await all_examined(proxy, NGINX_FRONTS)


@pytest.mark.parametrize(
    ("name", "check", "said", "advice"),
    [
        ("buffers", "events", "came when the stream was closed", "proxy_buffering off"),
        ("compresses", "events", "encoded as gzip", "gzip_types"),
        ("compresses all", "bytes", "encoded as gzip", "compression"),
        ("cuts", "quiet events", "cut after", "proxy_read_timeout"),
        ("cuts", "quiet long-poll", "cut after", "proxy_read_timeout"),
        ("exposes nothing", "browsers", "cannot see Stream-Next-Offset", "Expose-Headers"),
        ("refuses HEAD", "HEAD", "405", "HEAD"),
    ],
)
async def test_what_a_gateway_does_is_found(
    gateways: dict[str, dict[str, Finding]], name: str, check: str, said: str, advice: str
) -> None:
    finding = gateways[name][check]
    assert finding.verdict is Verdict.BAD
    assert said in finding.measured
    assert advice in (finding.advice or "")


async def test_a_gateway_that_does_no_harm_is_well(gateways: dict[str, dict[str, Finding]]) -> None:
    assert bad(gateways["harmless"]) == set()


async def test_nginx_as_it_comes_is_told_what_to_change(nginxes: dict[str, dict[str, Finding]]) -> None:
    found = nginxes["as it comes"]
    assert bad(found) == {"address", "upload"}
    assert "client_max_body_size" in (found["upload"].advice or "")
    assert "proxy_set_header Host" in (found["address"].advice or "")


async def test_nginx_in_a_hurry_is_told_so(nginxes: dict[str, dict[str, Finding]]) -> None:
    found = nginxes["hurried"]
    assert {"quiet events", "quiet long-poll"} <= bad(found)
    assert "proxy_read_timeout" in (found["quiet long-poll"].advice or "")


async def test_nginx_that_compresses_events_is_told_so(nginxes: dict[str, dict[str, Finding]]) -> None:
    finding = nginxes["compressing"]["events"]
    assert finding.verdict is not Verdict.OK
    assert "gzip_types" in (finding.advice or "")


async def test_nginx_by_our_example_is_well(nginxes: dict[str, dict[str, Finding]]) -> None:
    assert bad(nginxes["our example"]) == set()


async def test_a_cache_that_answers_strangers_is_found() -> None:
    async with serving(MemoryStore(), keys=BootstrapKeys.parse([KEY])) as proxy:
        assert (await examined(proxy.url, key=KEY))["cache"].verdict is Verdict.OK
        async with gateway(proxy.url, caches=True) as url:
            assert "cache" in bad(await examined(url, key=KEY))


async def test_without_a_stream_there_is_nothing_to_measure(run: Program, proxy: Proxy) -> None:
    async with gateway(proxy.url, refuses=frozenset({"PUT"})) as url:
        ended = await run.here("doctor", url)
    assert (ended.code, ended.out, "405" in ended.err or "refused" in ended.err) == (5, b"", True)
    assert (await run.here("doctor", "http://127.0.0.1:1")).code == 1
    assert (await run.here("doctor", "nonsense")).code == 2
