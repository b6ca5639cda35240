"""Requests that nobody would write, in sequences, over a raw socket: each is answered, and none is the server's fault.

The database is a real one: it refuses texts that a dictionary of Python takes. The examples are the same in every run.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from itertools import count
from typing import TypeVar
from urllib.parse import quote_from_bytes, urlsplit

import anyio.from_thread
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.serving import served_process

T = TypeVar("T")

START = f"{0:016d}_{0:016d}"
HERE = b"HERE"  # stands for a name that each example has for itself
NOWHERE = "http://127.0.0.1:9/"  # the port for discarding, where nobody listens

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Request:
    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def among(self, name: bytes) -> Request:
        """The same request, about the streams of one example."""
        headers = tuple((header, value.replace(HERE, name)) for header, value in self.headers)
        return Request(self.method, self.target.replace(HERE, name), headers, self.body.replace(HERE, name))

    def encode(self) -> bytes:
        sized = (b"Content-Length", b"%d" % len(self.body))
        lines = [b"%b: %b" % line for line in ((b"Host", b"x"), (b"Connection", b"close"), sized, *self.headers)]
        return b"\r\n".join([b"%b %b HTTP/1.1" % (self.method, self.target), *lines, b"", self.body])


class Target:
    """A served proxy; what it complains of is to be found in this process's stderr."""

    def __init__(self, url: str) -> None:
        self._address = (urlsplit(url).hostname, urlsplit(url).port)
        self.numbers = count()

    def send(self, request: Request) -> tuple[HTTPResponse, bytes]:
        """The answer, read to its end."""
        with socket.create_connection(self._address, timeout=20) as connection:
            connection.sendall(request.encode())
            with HTTPResponse(connection, method=request.method.decode()) as answer:
                answer.begin()
                return answer, answer.read()


@pytest.fixture
def target(database_url: str) -> Iterator[Target]:
    """A proxy that holds live reads for a moment only, and some streams in it."""
    moment = {
        "STREAMKEEP_LONG_POLL_SECONDS": "0.05",
        "STREAMKEEP_SSE_SECONDS": "0.05",
        "STREAMKEEP_RETRY_SECONDS": "0.1",
    }
    environ = {**moment, "STREAMKEEP_UPSTREAM_RETRIES": "0", "STREAMKEEP_LOG_LEVEL": "error"}
    with (
        anyio.from_thread.start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(served_process(database_url=database_url, environ=environ)) as process,
    ):
        yield Target(process.url)


def typed(kind: bytes, *more: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"Content-Type", kind), *more)


STREAMS = [
    (b"a", typed(b"text/plain"), "snow ☃".encode()),
    (b"j", typed(b"application/json"), b'[1,{"a":"b"}]'),
    (b"c", typed(b"application/octet-stream", (b"Stream-Closed", b"true")), bytes(range(256))),
    (b"a/f", typed(b"text/plain", (b"Stream-Forked-From", b"/v1/stream/HERE/a")), b"own"),
]

# What requests are made of: what is right, what is nearly right, and anything.

METHODS = st.sampled_from([b"GET", b"GET", b"PUT", b"POST", b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"BREW"])

SEGMENTS = st.one_of(
    st.sampled_from([b"a", b"j", b"c", b"f", b"new", b"s", b"chat", b"1", b"active", b"__ds", b"generations"]),
    st.sampled_from(
        [b"", b".", b"..", b"%2e%2e", b"%2F", b"%00", b"%ff", b"%", b"%zz", b"\\", b"*", b"**", b"x" * 300]
    ),
    st.binary(max_size=8).map(lambda name: quote_from_bytes(name, safe="").encode()),
)

PREFIXES = st.sampled_from(
    [
        *[b"/v1/stream/"] * 6,
        b"/v1/stream/__ds/subscriptions/",
        b"/v1/stream/__ds/subscriptions/s/",
        b"/v1/stream/__ds/",
        b"/v1/stream/__registry__",
        b"/v1/stream/generations/",
        b"/api/",
        b"/stream/data",
        b"/stream/control",
        b"/v1/",
        b"/",
    ]
)
OPERATIONS = st.sampled_from([b"claim", b"ack", b"release", b"callback", b"streams", b"streams/a", b"cancel", b"data"])
PATHS = st.builds(
    lambda prefix, segments: prefix + b"/".join(segments),
    PREFIXES,
    st.lists(SEGMENTS | OPERATIONS, max_size=3),
)

NUMBERS = [b"0", b"1", b"-1", b"00", b"1.5", b"9007199254740991", b"9007199254740992", b"9" * 30, b"\xd9\xa1"]
WORDS = [b"", b" ", b"true", b"TRUE", b"false", b"now", b"-1", b"x" * 300, b"\xff", b"\xc3\xa9", b"\t", b'"', b"*"]
OFFSETS = [
    START.encode(),
    START.replace("0_", "1_").encode(),
    f"{0:016d}_{1:016d}".encode(),
    b"9" * 16 + b"_" + b"9" * 16,
]
INSTANTS = [
    b"2099-01-01T00:00:00Z",
    b"0001-01-01T00:00:00+23:59",
    b"9999-12-31T23:59:59-23:59",
    b"2000-02-30T00:00:00Z",
]
KINDS = [b"text/plain", b"application/json", b"application/json; charset=utf-8", b"application/octet-stream", b"text/"]
SOURCES = [
    b"/v1/stream/HERE/a",
    b"/v1/stream/HERE/j",
    b"/v1/stream/HERE/a/f",
    b"/v1/stream/none",
    b"/v1/stream/%00",
    b"http://x/",
]
VALUES = st.one_of(
    st.sampled_from(NUMBERS + WORDS + OFFSETS + INSTANTS + KINDS + SOURCES + [NOWHERE.encode()]),
    st.binary(max_size=12).map(lambda value: bytes(byte for byte in value if byte >= 32 and byte != 127)),
)

PARAMETERS = {
    b"offset": [b"-1", b"now", *OFFSETS],
    b"live": [b"sse", b"long-poll"],
    b"cursor": NUMBERS,
    b"encoding": [b"base64"],
    b"as": [b"json", b"bytes", b"schema"],
    b"sessionId": [b"chat", b"%00"],
    b"requestId": [b"1", b"%00"],
    b"expires": NUMBERS,
    b"signature": [b"1.AAAA", b"%00"],
}
HEADERS = {
    b"Content-Type": KINDS,
    b"Stream-TTL": NUMBERS,
    b"Stream-Expires-At": INSTANTS,
    b"Stream-Closed": [b"true"],
    b"Stream-Seq": [b"1", b"2", b"a\xff"],
    b"Stream-Forked-From": SOURCES,
    b"Stream-Fork-Offset": OFFSETS,
    b"Stream-Fork-Sub-Offset": NUMBERS,
    b"Producer-Id": [b"p", b"\xff"],
    b"Producer-Epoch": NUMBERS,
    b"Producer-Seq": NUMBERS,
    b"If-None-Match": [b"*", b'"x"', b'W/"x'],
    b"Last-Event-ID": OFFSETS,
    b"Accept-Encoding": [b"gzip", b"gzip;q=0", b"*;q=x"],
    b"Authorization": [b"Bearer x", b"Bearer"],
    b"X-Proxy-Url": [NOWHERE.encode()],
    b"X-Proxy-Method": [b"POST"],
    b"Streamkeep-View": [b"json", b"bytes"],
    b"Streamkeep-Schema": [b"e30", b"eyJ0eXBlIjoib2JqZWN0In0", b"eyJ0eXBlIjoxfQ", b"\xff", b"W10="],
    b"X-Resume-Active-Generation": [b"true"],
    b"Origin": [b"null"],
    b"Access-Control-Request-Headers": [b"x"],
}


def mostly(right: st.SearchStrategy[T], wrong: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    return st.integers(0, 5).flatmap(lambda die: wrong if die == 5 else right)


PRODUCER = (b"Producer-Id", b"Producer-Epoch", b"Producer-Seq")
FORKS = {
    b"Stream-Forked-From": [*SOURCES[:3], *SOURCES],
    b"Stream-Fork-Offset": OFFSETS,
    b"Stream-Fork-Sub-Offset": NUMBERS[:3],
    b"Stream-TTL": [b"60"],
}


def one_of(known: dict[bytes, list[bytes]]) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """A name, with a value that is likely right."""
    return st.sampled_from(sorted(known)).flatmap(
        lambda name: st.tuples(st.just(name), mostly(st.sampled_from(known[name]), VALUES))
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["a", "\x00", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SUBSCRIPTION = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["webhook", "pull-wake"]) | JSON,
        "pattern": st.sampled_from(["**", "a/*", "\x00", "["]) | JSON,
        "streams": st.lists(st.sampled_from(["a", "j", "none", "\x00", ""]), max_size=3) | JSON,
        "webhook": st.fixed_dictionaries({"url": st.just(NOWHERE + "hook") | JSON}) | JSON,
        "wake_stream": st.sampled_from(["wake", "a", "\x00"]) | JSON,
        "lease_ttl_ms": st.integers(-1, 10**20) | JSON,
        "description": st.text(max_size=3) | JSON,
        "worker": st.text(max_size=3) | JSON,
        "generation": st.integers(-1, 10**20) | JSON,
        "wake_id": st.text(max_size=3) | JSON,
        "acks": st.lists(st.fixed_dictionaries({"stream": st.just("a") | JSON, "offset": st.just(START) | JSON}))
        | JSON,
        "done": JSON,
    },
)
BODIES = st.one_of(
    st.just(b""),
    st.binary(max_size=20),
    (JSON | SUBSCRIPTION).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [b"[]", b"[[]]", b"[1,", b"\xef\xbb\xbf[]", b"[" * 5000, b'"\\ud800"', b'"\\u0000"', b"1e999", b"\x1e"]
    ),
)
QUERIES = st.lists(one_of(PARAMETERS), max_size=3).map(
    lambda pairs: b"&".join(name + b"=" + quote_from_bytes(value, safe="%").encode() for name, value in pairs)
)
ANYTHING = st.builds(
    lambda method, path, query, headers, body: Request(method, path + (b"?" + query if query else b""), headers, body),
    METHODS,
    PATHS,
    QUERIES,
    st.lists(one_of(HEADERS), max_size=4).map(tuple),
    BODIES,
)

# Requests that get further than the first check: the right shape, with one or two wrong things in it.

STREAM_PATHS = st.sampled_from(
    [b"/v1/stream/HERE/" + name for name in (b"a", b"j", b"c", b"a/f", b"new", b"new/f", b"wake")]
)
STREAM_KINDS = mostly(st.sampled_from([b"text/plain", b"application/json"]), st.sampled_from(KINDS))
STREAM_HEADERS = {name: values for name, values in HEADERS.items() if name.startswith((b"Stream-", b"Producer-"))}
WRITES = st.builds(
    lambda method, path, kind, headers, body: Request(method, path, typed(kind, *headers), body),
    st.sampled_from([b"PUT", b"POST", b"POST", b"DELETE"]),
    STREAM_PATHS,
    STREAM_KINDS,
    st.one_of(
        st.just(()),
        st.tuples(one_of(STREAM_HEADERS)),
        st.tuples(one_of(FORKS), one_of(FORKS)),
        st.tuples(*(st.tuples(st.just(name), st.sampled_from([b"0", b"1", b"2"])) for name in sorted(PRODUCER))),
    ),
    mostly(st.sampled_from([b"[1]", b'["a",{"b":null}]', b"text", b""]), BODIES),
)
READS = st.builds(
    lambda method, path, query, headers: Request(method, path + b"?" + query, headers, b""),
    st.sampled_from([b"GET", b"GET", b"HEAD"]),
    STREAM_PATHS | st.just(b"/v1/stream/__registry__"),
    st.tuples(
        st.sampled_from([b"offset=-1", b"offset=now", b"offset=" + OFFSETS[0], b"offset=" + OFFSETS[2], b"cursor=1"]),
        mostly(
            st.sampled_from([b"", b"&cursor=9"]),
            # Seldom, since a live read waits for the tick of a second.
            st.sampled_from([b"&live=sse", b"&live=sse&encoding=base64", b"&live=long-poll"]),
        ),
    ).map(b"".join),
    st.lists(one_of(HEADERS), max_size=1).map(tuple),
)
SUBSCRIPTION_PATHS = [
    b"",
    b"",
    b"/streams",
    b"/streams/a",
    b"/streams/%00",
    b"/claim",
    b"/ack",
    b"/release",
    b"/callback",
]
SUBSCRIBING = st.builds(
    lambda method, name, path, body, changes: Request(
        method,
        b"/v1/stream/__ds/subscriptions/" + name + path,
        typed(b"application/json", (b"Authorization", b"Bearer x")),
        json.dumps({**body, **changes}).encode(),
    ),
    st.sampled_from([b"PUT", b"PUT", b"POST", b"POST", b"GET", b"DELETE"]),
    st.sampled_from([b"HERE", b"HERE.2"]),
    st.sampled_from(SUBSCRIPTION_PATHS),
    st.sampled_from(
        [
            {"type": "webhook", "pattern": "HERE/**", "webhook": {"url": NOWHERE + "hook"}},
            {"type": "pull-wake", "streams": ["HERE/a", "HERE/j"], "wake_stream": "HERE/wake"},
            {"worker": "w"},
            {"generation": 1, "wake_id": "w", "acks": [{"stream": "HERE/a", "offset": START}]},
        ]
    ),
    mostly(st.just({}), SUBSCRIPTION),
)
CALLS = st.builds(
    lambda method, path, headers, body: Request(method, path, ((b"X-Proxy-Url", NOWHERE.encode()), *headers), body),
    st.sampled_from([b"POST", b"POST", b"GET"]),
    st.sampled_from([b"/api/chat/1", b"/api/chat/2", b"/api/chat/active", b"/api/chat/1/cancel"]),
    st.lists(one_of(HEADERS), max_size=2).map(tuple),
    BODIES,
)
AGENT = st.fixed_dictionaries(
    {"id": st.just("helper") | JSON, "endpoint": st.just(NOWHERE) | JSON},
    optional={"headers": st.just({"a": "b"}) | JSON, "triggers": st.just("all") | JSON, "maxTurns": st.just(1) | JSON},
)
SESSION_FIELDS = {
    "content": st.just("Hi"),
    "parts": st.just([{"type": "text", "content": "Hi"}]),
    "messageId": st.sampled_from(["m", "a", "n"]),
    "fromMessageId": st.sampled_from(["m", "a", "n"]),
    "atMessageId": st.sampled_from(["m", "a", "n", None]),
    "newSessionId": st.just("HERE.2"),
    "role": st.sampled_from(["user", "system"]),
    "actorId": st.sampled_from(["ann", "bob"]),
    "txid": st.just("tx"),
    "toolCallId": st.sampled_from(["call", "none"]),
    "output": JSON,
    "approved": st.booleans(),
    "status": st.just("online"),
    "name": st.just("Trip"),
    "agent": AGENT,
    "agents": st.lists(AGENT, max_size=2),
}
SESSION_ROWS: list[dict[str, object]] = [
    {"type": "tool_call", "toolCall": {"id": "call", "function": {"name": "f", "arguments": "{}"}}},
    {"type": "approval-requested", "toolCallId": "call", "approval": {"id": "ok"}},
    {"type": "done", "finishReason": "tool_calls"},
]
SESSION = json.dumps(
    [
        {
            "type": "chunk",
            "key": f"a:{seq}",
            "value": {"messageId": "a", "actorId": "x", "role": "assistant", "seq": seq, "chunk": json.dumps(chunk)},
            "headers": {"operation": "insert"},
        }
        for seq, chunk in enumerate(SESSION_ROWS)
    ]
).encode()
Route = tuple[bytes, bytes, dict[str, object]]
ROUTES: list[Route] = [
    (b"POST", b"/messages", {"content": "Hi", "messageId": "m"}),
    (b"POST", b"/messages", {"content": "Hi", "agent": {"id": "helper", "endpoint": NOWHERE}}),
    (b"POST", b"/regenerate", {"fromMessageId": "m"}),
    (b"POST", b"/stop", {}),
    (b"POST", b"/tool-results", {"toolCallId": "call", "output": 1}),
    (b"POST", b"/approvals/ok", {"approved": True}),
    (b"POST", b"/approvals/%00", {"approved": True}),
    (b"POST", b"/agents", {"agents": [{"id": "helper", "endpoint": NOWHERE}]}),
    (b"DELETE", b"/agents/helper", {}),
    (b"PUT", b"/presence/ann", {"status": "online"}),
    (b"DELETE", b"/presence/%00", {}),
    (b"POST", b"/fork", {"newSessionId": "HERE.2"}),
    (b"PATCH", b"", {"name": "Trip"}),
    (b"PUT", b"", {}),
    (b"DELETE", b"", {}),
    *((b"GET", path, {}) for path in (b"", b"/messages?before=m", b"/agents", b"/compare/HERE.2", b"/export")),
]
CHANGED_FIELDS = st.dictionaries(st.sampled_from(sorted(SESSION_FIELDS)), st.none(), max_size=2).flatmap(
    lambda names: st.fixed_dictionaries({name: mostly(SESSION_FIELDS[name], JSON) for name in names})
)
CHATTING = st.builds(
    lambda route, name, headers, changes: Request(
        route[0], b"/v1/sessions/" + name + route[1], headers, json.dumps({**route[2], **changes}).encode()
    ),
    st.sampled_from(ROUTES),
    mostly(st.just(b"HERE"), st.just(b"HERE.2") | SEGMENTS),
    mostly(st.just(()), st.tuples(st.tuples(st.just(b"X-Actor-Id"), VALUES))),
    mostly(st.just({}), CHANGED_FIELDS),
)
REQUESTS = st.one_of(WRITES, WRITES, READS, SUBSCRIBING, CALLS, CHATTING, CHATTING, ANYTHING)


@settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=8))
def test_no_request_makes_the_server_fail(
    target: Target, capfd: pytest.CaptureFixture[str], requests: list[Request]
) -> None:
    name = b"%d" % next(target.numbers)
    for path, headers, body in STREAMS:
        answer, _ = target.send(Request(b"PUT", b"/v1/stream/HERE/" + path, headers, body).among(name))
        assert answer.status == 201
    for prefix, headers, body in (
        (b"/v1/stream/sessions/", typed(b"application/json"), SESSION),
        (b"/v1/sessions/", (), b""),
    ):
        answer, _ = target.send(Request(b"PUT", prefix + b"HERE", headers, body).among(name))
        assert answer.status == 201
    for request in (unnamed.among(name) for unnamed in requests):
        answer, content = target.send(request)
        is_call = request.target.startswith(b"/api/")
        assert answer.status < 500 or (is_call and answer.status == 502), (request, answer.status, content)
        if answer.status >= 400 and answer.headers["Content-Type"] == "application/json" and content:
            assert json.loads(content)
        assert capfd.readouterr().err == "", request
