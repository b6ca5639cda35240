"""Which headers travel on, by table."""

from __future__ import annotations

import pytest

from streamkeep.proxy.rules.headers import (
    MAX_FORWARDED_BYTES,
    MAX_FORWARDED_HEADERS,
    MAX_KEPT_BYTES,
    MAX_KEPT_HEADERS,
    ForwardRule,
    HeadersTooLarge,
    InvalidHeader,
    forwarded_headers,
    further_kept,
    kept_headers,
)

FORWARDED = [
    *("Authorization", "x-api-key", "api-key", "Content-Type", "Accept", "User-Agent", "anthropic-version"),
    *("anthropic-beta", "OpenAI-Organization", "OpenAI-Beta", "Idempotency-Key", "X-Stainless-Lang", "traceparent"),
    *(
        "Content-Encoding",
        "Accept-Language",
        "X-Custom",
        "If-None-Match",
        "Range",
        "X-Session",
        "X-Realm",
        "Cache-Control",
    ),
]

NOT_FORWARDED = [
    *("Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "HTTP2-Settings"),
    *("Proxy-Authorization", "Proxy-Authenticate", "Proxy-Connection", "proxy-anything"),
    *("Host", "Content-Length", "Accept-Encoding", "Expect", "Cookie"),
    *("X-Proxy-Url", "X-Proxy-Method", "x-proxy-future", "X-Session-ID", "X-Request-ID", "X-Resume-Active-Generation"),
    *(
        "X-Replay-From-Start",
        "X-Active-Generation-TTL",
        "Streamkeep-Key",
        "streamkeep-on-disconnect",
        "Upstream-Status",
    ),
    *("Upstream-Url", "Last-Event-ID", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "x-forwarded-proto"),
    *("X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "cf-ipcountry", "CDN-Loop", "X-Envoy-Original-Path"),
    *("X-Original-URL", "X-Rewrite-URL", "X-Original-Host", "X-HTTP-Method-Override", "X-Amzn-Trace-Id"),
    *("X-Real-IP", "Via", "Origin", "Referer", "Sec-Fetch-Mode", "sec-ch-ua", "Sec-WebSocket-Key", "Priority"),
]


@pytest.mark.parametrize("name", FORWARDED)
def test_a_header_for_upstream_is_forwarded_as_it_is(name: str) -> None:
    header = (name.encode(), b"a, b;\xe4 c")
    assert forwarded_headers([(b"Host", b"x"), header, header]) == [header, header]


@pytest.mark.parametrize("name", NOT_FORWARDED)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_a_header_for_us_or_for_this_connection_is_not(name: str, spell: type[str]) -> None:
    assert forwarded_headers([(spell(name).encode(), b"x"), (b"Accept", b"y")]) == [(b"Accept", b"y")]


def test_what_connection_names_is_dropped_with_it() -> None:
    raw = [
        (b"Connection", b"close, X-Hop"),
        (b"x-hop", b"1"),
        (b"connection", b" X-Other "),
        (b"X-OTHER", b"2"),
        (b"X", b"3"),
    ]
    assert forwarded_headers(raw) == [(b"X", b"3")]


@pytest.mark.parametrize(
    "header",
    [
        (b"X", b"a\r\nB: c"),
        (b"X", b"a\nb"),
        (b"X", b"a\rb"),
        (b"X", b"\0"),
        (b"X\n", b"a"),
        (b"X Y", b"a"),
        (b"X:", b"a"),
        (b"", b"a"),
        (b"\xc3\xa4", b"a"),
        (b"Cookie", b"a\r\nb"),
    ],
)
def test_a_header_that_would_be_two_is_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidHeader) as failure:
        forwarded_headers([(b"Accept", b"x"), header])
    assert str(failure.value).isprintable()


@pytest.mark.parametrize(
    ("most", "more"),
    [
        ([(b"X-A", b"b")] * MAX_FORWARDED_HEADERS, (b"X-A", b"")),
        ([(b"X-A", b"b" * (MAX_FORWARDED_BYTES - 3))], (b"C", b"")),
    ],
)
def test_forwarded_headers_are_bounded_in_number_and_size(
    most: list[tuple[bytes, bytes]], more: tuple[bytes, bytes]
) -> None:
    assert forwarded_headers([*most, (b"X-Proxy-Url", b"x" * 10_000)]) == most
    with pytest.raises(HeadersTooLarge):
        forwarded_headers([*most, more])


KEPT = [
    *("x-ratelimit-remaining-tokens", "ratelimit-limit", "anthropic-ratelimit-requests-remaining"),
    *("anthropic-organization-id", "openai-processing-ms", "openai-version", "request-id", "x-request-id"),
    *("apim-request-id", "x-amzn-requestid", "retry-after", "retry-after-ms", "x-should-retry", "cf-ray"),
    *("x-vercel-ai-ui-message-stream", "x-vercel-ai-data-stream", "x-ai-anything", "content-language"),
    *("content-disposition", "location", "link", "www-authenticate", "server-timing"),
]

NOT_KEPT = [
    *("set-cookie", "content-type", "content-encoding", "content-length", "transfer-encoding", "connection"),
    *("keep-alive", "trailer", "upgrade", "proxy-authenticate", "access-control-allow-origin"),
    *("access-control-expose-headers", "content-security-policy", "strict-transport-security", "server", "date"),
    *("alt-svc", "cache-control", "etag", "x-powered-by", "x-frame-options", "vary", "refresh", "clear-site-data"),
    *("stream-next-offset", "streamkeep-replayed", "upstream-status", "x-unknown"),
]


@pytest.mark.parametrize("name", KEPT)
def test_a_useful_header_is_kept_in_lower_case(name: str) -> None:
    assert kept_headers([(name.title().encode(), b" v\xe4l ")]) == ((name, "väl"),)


@pytest.mark.parametrize("name", NOT_KEPT)
def test_any_other_header_of_upstream_is_not(name: str) -> None:
    assert kept_headers([(name.encode(), b"x"), (name.upper().encode(), b"x")]) == ()


def test_an_operator_keeps_further_headers() -> None:
    raw = [(b"X-Trace", b"1"), (b"x-other", b"2"), (b"Retry-After", b"3")]
    assert kept_headers(raw, further_kept(["x-TRACE"])) == (("x-trace", "1"), ("retry-after", "3"))


@pytest.mark.parametrize(
    "name",
    [
        *("Set-Cookie", "Content-Type", "Content-Length", "Transfer-Encoding", "Connection", "Cache-Control", "ETag"),
        *("Access-Control-Allow-Origin", "Content-Security-Policy", "Stream-Next-Offset", "Streamkeep-Replayed"),
        *("Upstream-Status", "X-Session-ID", "Clear-Site-Data", "Proxy-Authenticate", "a b", "", "x\r\ny", "\u00e4"),
    ],
)
def test_some_headers_are_kept_for_no_operator(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be kept"):
        further_kept(["x-trace", name])


def test_kept_headers_stay_in_order_and_repeat() -> None:
    raw = [(b"Link", b"a"), (b"Server", b"x"), (b"CF-Ray", b"r"), (b"link", b"b")]
    assert kept_headers(raw) == (("link", "a"), ("cf-ray", "r"), ("link", "b"))


def test_what_upstream_binds_to_its_connection_is_not_kept() -> None:
    assert kept_headers([(b"Connection", b"CF-Ray"), (b"cf-ray", b"x"), (b"Link", b"y")]) == (("link", "y"),)


@pytest.mark.parametrize("value", [b"a\r\nb", b"a\0", b"a\x1bb", b"\x7f", b"a\x0bb"])
def test_a_value_with_control_characters_is_dropped(value: bytes) -> None:
    assert kept_headers([(b"Link", value), (b"Link", b"a\tb"), (b"openai-\xff", b"x")]) == (("link", "a\tb"),)


def test_kept_headers_are_bounded_in_number() -> None:
    raw = [(b"openai-%d" % number, b"x") for number in range(200)]
    assert kept_headers(raw) == tuple((f"openai-{number}", "x") for number in range(MAX_KEPT_HEADERS))


def test_kept_headers_are_bounded_in_size_and_small_ones_still_fit() -> None:
    raw = [(b"link", b"x" * (MAX_KEPT_BYTES - 20)), (b"link", b"y" * 100), (b"cf-ray", b"z")]
    assert [name for name, _ in kept_headers(raw)] == ["link", "cf-ray"]


def test_a_rule_admits_what_it_names_and_nothing_that_never_passes() -> None:
    rule = ForwardRule.parse(["Authorization", "anthropic-*", "cookie", "x-forwarded-*"])
    names = [
        "AUTHORIZATION",
        "Anthropic-Version",
        "anthropic",
        "Content-Type",
        "User-Agent",
        "Cookie",
        "X-Forwarded-For",
    ]
    raw = [(name.encode(), b"x") for name in names]
    assert [name.decode() for name, _ in forwarded_headers(raw, rule)] == [*names[:2], "Content-Type"]
    assert forwarded_headers(raw, ForwardRule.parse([])) == [(b"Content-Type", b"x")]


@pytest.mark.parametrize("text", ["a b", "x-*-y", "*x", "a:b", "ä"])
def test_a_rule_that_cannot_be_used_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        ForwardRule.parse([text])
