"""URLs that mean harm, on every route that takes a URL: none of them gets a socket opened.

The allowlists here are the widest that can be written. A canary listens on every address of this machine and must hear
nothing; beyond it, every attempt of this process to connect anywhere is seen, so an address where nobody listens counts too.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import pytest

from streamkeep.proxy.rules.allowlist import Allowlist
from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.storage import DEFAULT_TENANT, MemoryStore, SubscriptionKey
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream

PORT = "{port}"
UNROUTED = "3ffe::1"  # public by every rule, and given back long ago: nobody is there

# What names resolve to. The names look public, so that the wide allowlists admit them.
NAMES = {
    "loopback.example": ["127.0.0.1"],
    "loopback-net.example": ["127.8.8.8"],
    "loopback-v6.example": ["::1"],
    "unspecified.example": ["0.0.0.0"],
    "unspecified-v6.example": ["::"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "mapped-metadata.example": ["::ffff:169.254.169.254"],
    "compatible.example": ["::7f00:1"],
    "translated.example": ["::ffff:0:7f00:1"],
    "nat64.example": ["64:ff9b::7f00:1"],
    "nat64-local.example": ["64:ff9b:1::7f00:1"],
    "6to4.example": ["2002:7f00:1::1"],
    "teredo.example": ["2001:0:7f00:1::1"],
    "isatap.example": ["2606:4700::5efe:127.0.0.1"],
    "isatap-global.example": ["2606:4700::200:5efe:10.0.0.1"],
    "private-10.example": ["10.0.0.1"],
    "private-172.example": ["172.16.0.1"],
    "private-192.example": ["192.168.0.1"],
    "shared.example": ["100.64.0.1"],
    "metadata.example": ["169.254.169.254"],
    "metadata-v6.example": ["fd00:ec2::254"],
    "metadata-shared.example": ["100.100.100.200"],
    "wire-server.example": ["168.63.129.16"],
    "link-local.example": ["fe80::1%lo"],
    "unique-local.example": ["fd00::2"],
    "site-local.example": ["fec0::1"],
    "multicast.example": ["224.0.0.1"],
    "multicast-v6.example": ["ff02::1"],
    "broadcast.example": ["255.255.255.255"],
    "reserved.example": ["240.0.0.1"],
    "documentation.example": ["192.0.2.1"],
    "protocol.example": ["192.0.0.192"],
    "mixed.example": [UNROUTED, "127.0.0.1"],
    "mixed-v6.example": ["::1", UNROUTED],
    "hidden.example": ["127.0.0.1", "127.0.0.1"],
}


def _wide(text: str) -> str:
    """The same in full-width forms, which compatibility normalisation takes for the plain ones."""
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


HOSTS = [
    *NAMES,
    "LOOPBACK.example.",
    # this machine, spelled plainly and otherwise
    *("127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0X7F.0x0.0.0x1", "0177.0.0.1", "017700000001"),
    *("127.0.0.1.", "127.000.000.001", "0.0.0.0", "0", "127.1.", "0x7f.1", "00000000177.1", "127.0.0.1.."),
    *("localhost", "LOCALHOST", "localhost.", "api.localhost", "ip6-localhost", "localhost.localdomain"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[0000::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    *("[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]"),
    *("[2606:4700::5efe:127.0.0.1]", "[::1%25lo]", "[::1%lo]", "[fe80::1%25lo]", "[::1", "::1", "[127.0.0.1]"),
    # elsewhere inside
    *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "2852039166", "0xa9fea9fe"),
    *("0251.0376.0251.0376", "169.254.43518", "[fd00:ec2::254]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "224.0.0.1"),
    *("255.255.255.255", "100.100.100.200", "168.63.129.16", "192.0.0.192", "metadata.google.internal", "metadata"),
    *("instance-data", "kubernetes.default.svc", "host.docker.internal", "router.lan", "printer.local"),
    # digits, dots and letters that fold into others
    *(_wide("127") + ".0.0.1", "127.0.0.1".replace(".", _wide(".")), _wide("127.0.0.1"), _wide("localhost")),
    *("127\u30020\u30020\u30021", "127\uff610\uff610\uff611", "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460"),
    *("\u24dbocalhost", "loc\u00adalhost", "127.0.0.1\u200b"),
    *("%31%32%37.0.0.1", "127.0.0.1%2e", "127.0.0.1%00.example", "loopback%2eexample"),
    # two hosts in one
    *("api.example@127.0.0.1", "api.example:443@127.0.0.1", "api.example%40127.0.0.1", "127.0.0.1@api.example"),
    *("@127.0.0.1", "api.example\\@127.0.0.1", "api.example\\.127.0.0.1", "127.0.0.1\\.api.example"),
    *("127.0.0.1;api.example", "127.0.0.1,api.example", "api.example[127.0.0.1]", "*", ""),
]

URLS = [
    *(f"http://{host}:{PORT}/" for host in HOSTS),
    *(f"https://{host}:{PORT}/" for host in ("127.0.0.1", "[::1]", "2130706433", *NAMES)),
    # white space and control characters, which some parsers drop
    *(f"http://127.0.0.1{mark}:{PORT}/" for mark in ("\t", "\n", "\r\n", "\0", " ", "\x7f", "\u2028")),
    *(f"ht{mark}tp://127.0.0.1:{PORT}/" for mark in ("\t", "\n", "\r\n", "\0")),
    f"http://\t127.0.0.1:{PORT}/",
    f"http://127.0.0\n.1:{PORT}/",
    f"http://127.0.0.1:{PORT}/\r\nHost: api.example\r\n\r\nGET / HTTP/1.1",
    # what separates the authority
    f"http:\\\\127.0.0.1:{PORT}/",
    f"http:/127.0.0.1:{PORT}/",
    f"http:127.0.0.1:{PORT}/",
    f"http:///127.0.0.1:{PORT}/",
    f"//127.0.0.1:{PORT}/",
    f"127.0.0.1:{PORT}",
    f"http://api.example#@127.0.0.1:{PORT}/",
    f"http://api.example?@127.0.0.1:{PORT}/",
    f"http://api.example/@127.0.0.1:{PORT}/../",
    f"http://api.example:80@127.0.0.1:{PORT}/",
    # ports
    f"http://127.0.0.1:{PORT}:80/",
    f"http://127.0.0.1:80:{PORT}/",
    f"http://127.0.0.1:0{PORT}/",
    f"http://127.0.0.1:+{PORT}/",
    f"http://127.0.0.1: {PORT}/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:65536/",
    "http://127.0.0.1:-1/",
    "http://127.0.0.1:/",
    # other schemes
    f"gopher://127.0.0.1:{PORT}/_GET%20/",
    f"ftp://127.0.0.1:{PORT}/",
    f"ws://127.0.0.1:{PORT}/",
    f"dict://127.0.0.1:{PORT}/info",
    f"unix://127.0.0.1:{PORT}/",
    f"http+unix://127.0.0.1:{PORT}/",
    f"private:http://127.0.0.1:{PORT}/",
    f"jar:http://127.0.0.1:{PORT}/!/",
    "file:///etc/passwd",
    "data:text/plain,hello",
]


class Resolver:
    """Answers for the names above, takes numbers in every form that the C library takes, and knows nothing else."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.scripts: dict[str, Iterator[list[str]]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host in self.scripts:
            return next(self.scripts[host])
        if host.removesuffix(".") in NAMES:
            return NAMES[host.removesuffix(".")]
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(address[0]) for *_, address in found]


class Canary:
    """Listens everywhere, on one port; `heard` says whether anybody came."""

    def __init__(self) -> None:
        if socket.has_dualstack_ipv6():
            self._socket = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            self._socket = socket.create_server(("", 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    def heard(self) -> bool:
        try:
            self._socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()


class Connects:
    """Every address that a socket of this process was to be connected to, but the proxy's own."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.ignored_port = 0
        self._is_watching = False
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, proxy: Proxy) -> Iterator[None]:
        self.addresses.clear()
        self.ignored_port = urlsplit(proxy.url).port or 0
        self._is_watching = True
        try:
            yield
        finally:
            self._is_watching = False

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._is_watching or not event.startswith(("socket.connect", "socket.sendto")):
            return
        address = arguments[1]
        if isinstance(address, tuple) and address[1] != self.ignored_port:
            self.addresses.append(str(address[0]))


CONNECTS = Connects()
NUMBERS = itertools.count()

Attempt = Callable[[Proxy, str], Coroutine[None, None, int]]
"""Give a route a URL; returns the answer's status once nothing more will come of it."""


async def post(proxy: Proxy, target: str, *headers: str) -> int:
    """A request written as it is, since a client would refuse to."""
    lines = [f"POST {target} HTTP/1.1", "Host: x", "Connection: close", "Content-Length: 2", *headers, "", "{}"]
    parts = urlsplit(proxy.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write("\r\n".join(lines).encode())
        async with asyncio.timeout(20):
            return int((await reader.read(-1)).split(b" ", 2)[1])
    finally:
        writer.transport.abort()


def by_header(target: str, name: str, *more: str) -> Attempt:
    """A route that is given its URL in a header."""

    async def attempt(proxy: Proxy, url: str) -> int:
        return await post(proxy, target.format(next(NUMBERS)), *more, f"{name}: {url}")

    return attempt


async def webhook(proxy: Proxy, url: str) -> int:
    """Subscribe with the URL; what is accepted is due for a delivery at once, and is waited for."""
    id = f"s{next(NUMBERS)}"
    path = f"/v1/stream/__ds/subscriptions/{id}"
    answer = await proxy.client.put(path, json={"type": "webhook", "pattern": f"{id}/*", "webhook": {"url": url}})
    if answer.is_success:
        json = {"Content-Type": "application/json"}
        assert (await proxy.client.put(f"/v1/stream/{id}/a", content=b"[1]", headers=json)).status_code == 201
        subscriptions = proxy.service.store.subscriptions
        async with asyncio.timeout(20):
            while not (await subscriptions.subscription(SubscriptionKey(DEFAULT_TENANT, id))).wake.attempts:
                await asyncio.sleep(0.002)
        await proxy.client.delete(path)
    return answer.status_code


ROUTES: dict[str, Attempt] = {
    "transport": by_header("/api/hostile/{}", "X-Proxy-Url", "X-Proxy-Method: POST"),
    "proxy protocol": by_header("/v1/proxy", "Upstream-URL", "Upstream-Method: POST"),
    "webhook": webhook,
}
ANSWERS_TO_REDIRECTS = {"transport": 502, "proxy protocol": 400, "webhook": 201}


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    made = Canary()
    yield made
    made.close()


@asynccontextmanager
async def exposed(resolver: Resolver, *globs: str, **more: object) -> AsyncIterator[Proxy]:
    """A proxy for strangers: its rules admit whatever can be admitted in general, and these globs."""
    allow = Allowlist.parse(["*:*/**", *globs])
    changes = {"allow": allow, "webhook_allow": allow, "host": "0.0.0.0", "upstream_retries": 0}
    async with serving(MemoryStore(), resolve=resolver, **changes, **more) as proxy:
        yield proxy


@pytest.fixture(scope="module")
async def proxy() -> AsyncIterator[Proxy]:
    async with exposed(Resolver()) as served:
        yield served


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("route", ROUTES)
async def test_t35_a_hostile_url_gets_no_socket(proxy: Proxy, canary: Canary, route: str, url: str) -> None:
    with CONNECTS.watching(proxy):
        status = await ROUTES[route](proxy, url.replace(PORT, str(canary.port)))
    assert CONNECTS.addresses == []
    assert not canary.heard()
    # A webhook may be accepted for what its name looks like: names are resolved when there is something to deliver.
    assert status in ((400, 403, 502) if route != "webhook" else (400, 201))


@pytest.mark.parametrize("route", ROUTES)
async def test_a_spelled_address_is_reached_so_the_canary_hears(canary: Canary, route: str) -> None:
    async with exposed(Resolver(), f"127.0.0.1:{canary.port}") as proxy:
        asking = asyncio.create_task(ROUTES[route](proxy, f"http://127.0.0.1:{canary.port}/"))
        async with asyncio.timeout(60):
            while not canary.heard():
                await asyncio.sleep(0.002)
        await asking


@pytest.mark.parametrize("route", ROUTES)
async def test_t35_a_name_that_changes_its_answer_is_asked_once_and_believed_once(canary: Canary, route: str) -> None:
    resolver = Resolver()
    resolver.scripts["rebinding.example"] = iter([[UNROUTED], ["127.0.0.1"], ["127.0.0.1"]])
    async with exposed(resolver, connect_seconds=0.3) as proxy:
        with CONNECTS.watching(proxy):
            await ROUTES[route](proxy, f"http://rebinding.example:{canary.port}/")
            # Where there is no IPv6 at all, nothing is even tried.
            assert (resolver.asked, set(CONNECTS.addresses) | {UNROUTED}) == (["rebinding.example"], {UNROUTED})
            # Asked again by another request, it is judged by its new answer.
            await ROUTES[route](proxy, f"http://rebinding.example:{canary.port}/")
            assert (len(resolver.asked), set(CONNECTS.addresses) | {UNROUTED}) == (2, {UNROUTED})
    assert not canary.heard()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("route", ROUTES)
async def test_t35_a_redirect_is_not_followed(canary: Canary, route: str, status: int) -> None:
    async def play(exchange: Exchange) -> None:
        location = f"http://127.0.0.1:{canary.port}/"
        await exchange.answer(status, b"", {"Location": location, "Refresh": f"0;url={location}"})

    async with upstream(play) as server, exposed(Resolver(), f"{server.host}/**", f"127.0.0.1:{canary.port}") as proxy:
        assert await ROUTES[route](proxy, server.url) == ANSWERS_TO_REDIRECTS[route]
        assert len(server.calls) == 1
    assert not canary.heard()


@pytest.mark.parametrize(
    "rest",
    [
        *(f"//127.0.0.1:{PORT}/", f"/@127.0.0.1:{PORT}/", f"/http://127.0.0.1:{PORT}/", f"/..//127.0.0.1:{PORT}/"),
        *(f"/%2f%2f127.0.0.1:{PORT}/", f"/%40127.0.0.1:{PORT}/", f"/\\127.0.0.1:{PORT}/", f"/\\\\127.0.0.1:{PORT}/"),
        *(f"/?@127.0.0.1:{PORT}/", f"?@127.0.0.1:{PORT}/", f"/#@127.0.0.1:{PORT}/", f"/;@127.0.0.1:{PORT}/"),
        *(f"@127.0.0.1:{PORT}/", f".127.0.0.1:{PORT}/", f":80@127.0.0.1:{PORT}/", f"%40127.0.0.1:{PORT}/"),
        *(
            f"/\t//127.0.0.1:{PORT}/",
            f"/\r\nHost: 127.0.0.1:{PORT}\r\n",
            "/%0d%0aHost:%20x",
            "/%2e%2e/%2e%2e/",
            "/../admin",
        ),
    ],
)
async def test_t35_a_path_does_not_leave_its_named_upstream(canary: Canary, rest: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, b"ok", {"Content-Type": "text/plain"})

    async with upstream(play) as server:
        # Its URL has a path, so that dot segments would have something to leave.
        named = Upstreams.parse(f"vendor={server.url}/v1")
        async with exposed(Resolver(), f"127.0.0.1:{canary.port}", upstreams=named) as proxy:
            assert await post(proxy, f"/u/vendor{rest.replace(PORT, str(canary.port))}") in (200, 400, 404)
        for call in server.calls:
            assert (call.header("Host"), call.path.startswith("/v1/")) == (server.host, True)
            assert ".." not in call.path
    assert not canary.heard()


async def test_t35_a_named_upstreams_redirect_is_not_followed(canary: Canary) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(307, b"", {"Location": f"http://127.0.0.1:{canary.port}/"})

    async with upstream(play) as server:
        named = Upstreams.parse(f"vendor={server.url}")
        async with exposed(Resolver(), f"127.0.0.1:{canary.port}", upstreams=named) as proxy:
            assert await post(proxy, "/u/vendor/v1") == 502
            assert len(server.calls) == 1
    assert not canary.heard()
