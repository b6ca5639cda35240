"""Which URLs may be called, by table: what globs match, what no glob may admit, and which addresses are public."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkeep.proxy.rules.addresses import is_private_host, is_public_address, may_reach
from streamkeep.proxy.rules.allowlist import (
    DEFAULT_GLOBS,
    MAX_URL_BYTES,
    Allowed,
    Allowlist,
    AllowlistError,
    Refused,
)

EVERYTHING = Allowlist.parse(["*:*"])
PRIVATE_TOO = Allowlist.parse(["127.0.0.1:*", "[::1]:*", "private:http://*.*m:*", "a:*"])


def is_allowed(globs: list[str], url: str) -> bool:
    return isinstance(Allowlist.parse(globs).decide(url), Allowed)


def is_private(decision: Allowed | Refused) -> bool:
    assert isinstance(decision, Allowed)
    return decision.origin.may_be_private


MATCHES = [
    # scheme
    ("https://api.example.com", "https://api.example.com/v1"),
    ("api.example.com", "https://api.example.com/"),
    ("api.example.com", "http://api.example.com/"),
    ("HTTPS://api.example.com", "hTTps://api.example.com/"),
    # host
    ("https://API.Example.com/**", "https://api.EXAMPLE.com/v1"),
    ("api.example.com", "https://api.example.com./"),
    ("api.example.com.", "https://api.example.com/"),
    ("*.example.com", "https://a.example.com/"),
    ("*.example.com", "https://a.b.c.example.com/"),
    ("api-*.example.com", "https://api-eu.example.com/"),
    ("eu.*.example.com", "https://eu.west.example.com/"),
    ("*", "https://anything.example/"),
    ("bücher.example", "https://BÜCHER.example/"),
    ("bücher.example", "https://xn--bcher-kva.example/"),
    ("xn--bcher-kva.example", "https://bücher.example/"),
    ("my_service.example.com", "https://my_service.example.com/"),
    ("http://8.8.8.8", "http://8.8.8.8/"),
    ("http://[2606:4700::1111]", "http://[2606:4700:0:0::1111]/"),
    # port
    ("https://api.example.com", "https://api.example.com:443/"),
    ("http://api.example.com", "http://api.example.com:80/"),
    ("https://api.example.com:443", "https://api.example.com/"),
    ("api.example.com:8443", "https://api.example.com:8443/"),
    ("api.example.com:*", "https://api.example.com:1/"),
    ("api.example.com:*", "https://api.example.com/"),
    # path
    ("https://api.example.com/*", "https://api.example.com/a/b"),
    ("https://api.example.com/**", "https://api.example.com"),
    ("https://api.example.com/v1/*", "https://api.example.com/v1/models"),
    ("https://api.example.com/v1/**", "https://api.example.com/v1/models/x"),
    ("https://api.example.com/v1/**", "https://api.example.com/v1/"),
    ("https://api.example.com/v1/chat", "https://api.example.com/v1/chat"),
    ("https://api.example.com/v1/chat", "https://api.example.com/v1/chat?key=1#top"),
    ("https://api.example.com/d/*/chat", "https://api.example.com/d/gpt/chat"),
    ("https://api.example.com/", "https://api.example.com"),
    ("https://api.example.com/v1/a%20b", "https://api.example.com/v1/a%20b"),
    ("https://api.example.com/v1/*", "https://api.example.com/v1/model:generate@2"),
]

MISSES = [
    ("https://api.example.com", "http://api.example.com/"),
    ("http://api.example.com", "https://api.example.com/"),
    ("api.example.com", "https://example.com/"),
    ("api.example.com", "https://api.example.com.evil.example/"),
    ("api.example.com", "https://evil-api.example.com/"),
    ("api.example.com", "https://apiXexample.com/"),
    ("*.example.com", "https://example.com/"),
    ("*.example.com", "https://badexample.com/"),
    ("*.example.com", "https://a.example.com.evil.example/"),
    ("api-*.example.com", "https://api-a.b.example.com/"),
    ("eu.*.example.com", "https://eu.a.b.example.com/"),
    ("eu.*.example.com", "https://eu.example.com/"),
    ("api.example.com", "https://api.example.com:8443/"),
    ("https://api.example.com", "https://api.example.com:80/"),
    ("api.example.com:8443", "https://api.example.com/"),
    ("api.example.com:443", "http://api.example.com/"),
    ("https://api.example.com/v1/*", "https://api.example.com/v1/a/b"),
    ("https://api.example.com/v1/*", "https://api.example.com/v1/"),
    ("https://api.example.com/v1/*", "https://api.example.com/v1"),
    ("https://api.example.com/v1/**", "https://api.example.com/v1"),
    ("https://api.example.com/v1/**", "https://api.example.com/v10/x"),
    ("https://api.example.com/v1/**", "https://api.example.com/V1/x"),
    ("https://api.example.com/v1/**", "https://api.example.com//v1/x"),
    ("https://api.example.com/v1/chat", "https://api.example.com/v1/chat/"),
    ("https://api.example.com/v1/chat", "https://api.example.com/v1/ch%61t"),
    ("https://api.example.com/", "https://api.example.com/v1"),
    ("https://api.example.com/d/*/chat", "https://api.example.com/d//chat"),
]


@pytest.mark.parametrize(("glob", "url"), MATCHES)
def test_a_glob_admits(glob: str, url: str) -> None:
    assert is_allowed([glob], url)
    assert is_allowed(["https://other.example/**", glob], url)


@pytest.mark.parametrize(("glob", "url"), MISSES)
def test_a_glob_does_not_admit(glob: str, url: str) -> None:
    decision = Allowlist.parse([glob]).decide(url)
    assert isinstance(decision, Refused)
    assert not decision.is_malformed


@pytest.mark.parametrize(
    ("url", "authority", "resource"),
    [
        ("https://api.example.com:443", "api.example.com", b"/"),
        ("http://API.example.com.:443/?", "api.example.com.:443", b"/?"),
        ("HTTPS://bücher.example:0443/ä?ü#ö", "xn--bcher-kva.example", b"/%C3%A4?%C3%BC"),
        ("http://[2606:4700:0:0::ABCD]:80/a`?`", "[2606:4700:0:0::ABCD]", b"/a%60?`"),
        ("http://[2606:4700::1111]:8080/%7e?%", "[2606:4700::1111]:8080", b"/%7e?%"),
    ],
)
def test_a_decision_says_what_is_sent(url: str, authority: str, resource: bytes) -> None:
    allowed = EVERYTHING.decide(url)
    assert isinstance(allowed, Allowed)
    assert (allowed.origin.authority, allowed.resource) == (authority, resource)


@pytest.mark.parametrize("url", [url for _, url in MATCHES])
def test_the_url_that_was_judged_is_the_one_that_is_called(url: str) -> None:
    """Another parser finds the host that the allowlist saw."""
    parsed = httpx.URL(url)
    port = "" if parsed.port is None else f":{parsed.port}"
    host = parsed.raw_host.decode().removesuffix(".")
    spelled = f"[{host}]" if ":" in host else host
    assert is_allowed([f"{parsed.scheme}://{spelled}{port}"], url)


PIECES = st.sampled_from(
    [
        *(
            "http",
            "https",
            "HTTP",
            ":",
            "/",
            "//",
            "://",
            "@",
            "\\",
            "?",
            "#",
            "%",
            "%2f",
            "%2e",
            "%40",
            "[",
            "]",
            "::1",
            ".",
        ),
        *(
            "..",
            "a",
            "api.example.com",
            "evil.example",
            "127.0.0.1",
            "127.1",
            "0x7f",
            "1",
            "80",
            "443",
            "xn--",
            "-",
            "_",
        ),
        *(
            "\u3002",
            "\uff0f",
            "\uff20",
            "\uff1a",
            "\u00df",
            "\u212a",
            "\u00fc",
            "\u0130",
            "\u200d",
            "\u00ad",
            "\t",
            "\n",
            " ",
            "\0",
            ";",
        ),
    ]
)
AUTHORITIES = st.lists(PIECES, min_size=1, max_size=6).map("".join)
LABELS = st.sampled_from(
    [
        "a",
        "API",
        "example",
        "com",
        "b\u00fccher",
        "stra\u00dfe",
        "\u0130",
        "\u212a",
        "xn--bcher-kva",
        "1",
        "127",
        "_x",
        "\u4e2d",
    ]
)
HOSTS = st.builds(
    lambda dot, labels, end: dot.join(labels) + end,
    st.sampled_from([".", ".", "\u3002"]),
    st.lists(LABELS, min_size=1, max_size=4),
    st.sampled_from(["", "", ".", ":80", ":443", ":8080"]),
)
ANY_URL = st.one_of(
    st.builds("{}://{}/{}".format, st.sampled_from(["http", "HTTPS"]), HOSTS, st.one_of(st.just("v1"), AUTHORITIES)),
    st.builds("{}://{}{}".format, st.sampled_from(["http", "https"]), HOSTS, PIECES),
    st.lists(PIECES, max_size=10).map("".join),
    st.builds("http://{}/{}".format, AUTHORITIES, AUTHORITIES),
    st.builds("https://{}".format, AUTHORITIES),
    st.builds("http://{}".format, st.text(max_size=12)),
)


@settings(max_examples=1500, derandomize=True, deadline=None, database=None)
@given(url=ANY_URL)
def test_what_is_admitted_is_read_as_another_parser_reads_it(url: str) -> None:
    decisions = [allowlist.decide(url) for allowlist in (EVERYTHING, PRIVATE_TOO)]
    allowed = next((decision for decision in decisions if isinstance(decision, Allowed)), None)
    if allowed is None:
        return
    parsed = httpx.URL(url)
    host = parsed.raw_host.decode().removesuffix(".")
    spelled = f"[{host}]" if ":" in host else host
    assert parsed.userinfo == b""
    port = parsed.port or {"http": 80, "https": 443}[parsed.scheme]
    assert is_allowed([f"{parsed.scheme}://{spelled}:{port}"], url)
    assert (allowed.origin.scheme, allowed.origin.host) == (parsed.scheme, parsed.raw_host.decode())
    assert (allowed.origin.port, allowed.resource) == (port, parsed.raw_path)


# No glob admits these, since parsers differ on them or they hide where they lead.
HOSTILE = [
    # no absolute http URL
    "",
    "/v1/chat",
    "//api.example.com/v1",
    "api.example.com/v1",
    "http:/api.example.com/",
    "http:api.example.com/",
    "http:///v1",
    "http://",
    "http://?x",
    "file:///etc/passwd",
    "file://api.example.com/etc/passwd",
    "ftp://api.example.com/",
    "gopher://api.example.com/",
    "ws://api.example.com/",
    "javascript://api.example.com/%0aalert(1)",
    "https+unix://api.example.com/",
    # user information
    "https://user@api.example.com/",
    "https://user:secret@api.example.com/",
    "https://api.example.com@evil.example/",
    "https://api.example.com:443@evil.example/",
    "https://@api.example.com/",
    "https://%61@api.example.com/",
    # backslashes, white space, control characters
    "https://api.example.com\\@evil.example/",
    "https:\\\\api.example.com/",
    "https://api.example.com\\.evil.example/",
    "https://api.example.com/v1\\..\\admin",
    " https://api.example.com/",
    "https://api.example.com/ ",
    "https://api.example.com/a b",
    "https://api.example.com\t/",
    "https://api.example.com/\r\nX-Evil: 1",
    "https://api.example.com/?a=\nb",
    "https://api.example.com/\x00",
    "https://api.example.com/\x7f",
    "https://api.example.com/\u2028",
    "https://api.example.com/\u200b",
    "https://api.example.com/\u00a0",
    "https://api.example.com/\ud800",
    # hosts
    "https://api..example.com/",
    "https://.api.example.com/",
    "https://api.example.com../",
    "https://-api.example.com/",
    "https://api.example.com%2eevil.example/",
    "https://api%2eexample.com/",
    "https://api.example.com%00.evil.example/",
    "https://*.example.com/",
    "https://api,example.com/",
    "https://api;example.com/",
    "https://api.example.com:/",
    f"https://{'a' * 64}.example.com/",
    f"https://{'a.' * 127}com/",
    "https://\u2100.example/",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://ⓛocalhost/",
    # addresses in other spellings
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://0/",
    "http://127.0.0.01/",
    "http://127.0.0.0x1/",
    "http://256.1.1.1/",
    "http://1.2.3.4.5/",
    "http://example.1/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]x/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[127.0.0.1]/",
    "http://[v1.x]/",
    "http://[::ffff:127.0.0.256]/",
    # ports
    "https://api.example.com:0/",
    "https://api.example.com:65536/",
    "https://api.example.com:-1/",
    "https://api.example.com:+443/",
    "https://api.example.com:443x/",
    "https://api.example.com:4 43/",
    "https://api.example.com:٤٤٣/",
    "https://api.example.com:80:80/",
    # paths that other parsers walk out of
    "https://api.example.com/v1/../admin",
    "https://api.example.com/v1/./x",
    "https://api.example.com/..",
    "https://api.example.com/v1/%2e%2e/admin",
    "https://api.example.com/v1/%2E./admin",
    "https://api.example.com/v1/.%2e/admin",
    "https://api.example.com/v1/%2e/x",
    "https://api.example.com/v1/..;/admin",
    "https://api.example.com/v1/..;x=y/admin",
    "https://api.example.com/v1/%2e%2e;/admin",
    "https://api.example.com/v1/..%3b/admin",
    "https://api.example.com/v1/%2E.%3Bx=y/admin",
    "https://api.example.com/v1/..%2fadmin",
    "https://api.example.com/v1%2fadmin",
    "https://api.example.com/v1%5cadmin",
    "https://api.example.com/v1%5C..%5Cadmin",
    "https://api.example.com/v1/%252e%252e/admin",
    "https://api.example.com/v1/%252fadmin",
    "https://api.example.com/v1/%25%32%65%25%32%65/admin",
    "https://api.example.com/v1/%25%32%66admin",
    "https://api.example.com/v1/%252%66admin",
    "https://api.example.com/v1/%25252fadmin",
    "https://api.example.com/v1/%00",
    "https://api.example.com/v1/%0d%0aX:y",
    "https://api.example.com/v1/%7f",
    "https://api.example.com/v1/%",
    "https://api.example.com/v1/%2",
    "https://api.example.com/v1/%zz",
    # length
    "https://api.example.com/" + "a" * MAX_URL_BYTES,
    "https://api.example.com/?" + "ä" * (MAX_URL_BYTES // 2),
]


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_url_is_refused_as_malformed(url: str) -> None:
    for allowlist in (EVERYTHING, Allowlist.parse(["api.example.com", "*.example.com:*", "127.0.0.1:*", "localhost"])):
        decision = allowlist.decide(url)
        assert isinstance(decision, Refused)
        assert decision.is_malformed
        assert len(decision.message) < 400
        assert decision.message.isprintable()


# Well-formed, and admitted only by a glob that spells the very host.
PRIVATE_URLS = [
    ("http://127.0.0.1/", "http://127.0.0.1"),
    ("http://127.0.0.1./", "http://127.0.0.1"),
    ("http://127\u30020\u30020\u30021/", "http://127.0.0.1"),  # an ideographic full stop ends a label too
    ("http://127.8.8.8:81/", "http://127.8.8.8:81"),
    ("http://0.0.0.0/", "http://0.0.0.0"),
    ("http://10.1.2.3/", "http://10.1.2.3"),
    ("http://172.16.0.1/", "http://172.16.0.1"),
    ("http://172.31.255.255/", "http://172.31.255.255"),
    ("http://192.168.0.1/", "http://192.168.0.1"),
    ("http://169.254.169.254/latest/meta-data/", "http://169.254.169.254"),
    ("http://100.100.100.200/", "http://100.100.100.200"),
    ("http://168.63.129.16/", "http://168.63.129.16"),
    ("http://224.0.0.1/", "http://224.0.0.1"),
    ("http://255.255.255.255/", "http://255.255.255.255"),
    ("http://[::1]/", "http://[0:0:0:0:0:0:0:1]"),
    ("http://[::]/", "http://[::]"),
    ("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]"),
    ("http://[::ffff:a9fe:a9fe]/", "http://[::ffff:169.254.169.254]"),
    ("http://[64:ff9b::10.0.0.1]/", "http://[64:ff9b::a00:1]"),
    ("http://[2002:7f00:1::1]/", "http://[2002:7f00:1::1]"),
    ("http://[2001:0:7f00:1::]/", "http://[2001:0:7f00:1::]"),
    ("http://[fe80::1]/", "http://[fe80::1]"),
    ("http://[fd00:ec2::254]/", "http://[fd00:ec2::254]"),
    ("http://localhost:4001/", "http://localhost:4001"),
    ("http://LOCALHOST./", "http://localhost"),
    ("http://api.localhost/", "http://api.localhost"),
    ("http://vendor/", "http://vendor"),
    ("http://printer.local/", "printer.local"),
    ("http://metadata.google.internal/", "metadata.google.internal"),
    ("http://nas.lan/", "nas.lan"),
    ("http://box.home.arpa/", "box.home.arpa"),
    ("http://llm.default.svc/", "llm.default.svc"),
    ("http://llm.default.svc.cluster.local/", "llm.default.svc.cluster.local"),
]


@pytest.mark.parametrize(("url", "glob"), PRIVATE_URLS)
def test_only_a_glob_that_spells_a_private_host_admits_it(url: str, glob: str) -> None:
    for wide in (["*:*"], ["*:*/**", "*.local:*", "*.internal", "*.0.0.x"], ["loc*:*", "*.localhost"]):
        assert isinstance(Allowlist.parse(wide).decide(url), Refused)
    assert is_private(Allowlist.parse([glob]).decide(url)) is True
    assert is_private(Allowlist.parse(["*:*", glob]).decide(url)) is True


def test_a_public_host_never_gets_the_permission_for_private_addresses() -> None:
    allowlist = Allowlist.parse(["*:*", "https://api.example.com/**", "http://127.0.0.1/**", "http://8.8.8.8"])
    for url in ("https://api.example.com/", "https://x.example/", "http://8.8.8.8/", "http://127.0.0.1.example.com/"):
        assert is_private(allowlist.decide(url)) is False


MARKED = [
    ("private:http://models.example.com:8000/v1/**", "http://models.example.com:8000/v1/chat"),
    ("PRIVATE:HTTPS://models.example.com", "https://models.example.com/"),
    ("private:https://*.corp.example.com", "https://a.b.corp.example.com/"),
    ("private:http://*.svc.cluster.local:*", "http://models.llm.svc.cluster.local:8000/"),
    ("private:http://127.0.0.1:4001", "http://127.0.0.1:4001/"),
    ("private:8080", "http://private:8080/"),  # the host of that name: no scheme follows
]


@pytest.mark.parametrize(("glob", "url"), MARKED)
def test_a_marked_glob_admits_private_addresses_for_what_it_matches(glob: str, url: str) -> None:
    assert is_private(Allowlist.parse([glob]).decide(url)) is True
    for other in ("https://example.com/", "http://10.1.2.3/", "http://[::1]/", "http://localhost/"):
        assert isinstance(Allowlist.parse([glob]).decide(other), Refused)


@pytest.mark.parametrize("glob", ["private:http://*a", "private:http://*.x*", "*a:*", "*.*a"])
def test_a_star_matches_no_address(glob: str) -> None:
    for url in ("http://[::a]/", "http://[fd00::1]/", "http://10.1.1.1/", "http://[2606::a]/"):
        assert isinstance(Allowlist.parse([glob]).decide(url), Refused)


@pytest.mark.parametrize("url", [url for url, _ in PRIVATE_URLS if ":4001" not in url] + [url for _, url in MISSES])
@pytest.mark.parametrize("globs", [(), DEFAULT_GLOBS])
def test_a_refusal_names_the_line_that_would_allow_the_url(url: str, globs: tuple[str, ...]) -> None:
    decision = Allowlist.parse(globs).decide(url)
    assert isinstance(decision, Refused)
    line = decision.message.rpartition("STREAMKEEP_ALLOW=")[2]
    assert tuple(line.split(",")[:-1]) == globs
    assert is_allowed(line.split(","), url)


@pytest.mark.parametrize("url", [url for url, _ in PRIVATE_URLS] + [url for _, url in MISSES])
def test_a_refusal_tells_no_glob_of_the_operators_own(url: str) -> None:
    decision = Allowlist.parse(["private:http://inside.example/**", "two.example:*"]).decide(url)
    assert isinstance(decision, Refused)
    assert "inside" not in decision.message
    assert is_allowed([decision.message.rpartition("would allow it: ")[2]], url)


def test_a_refusal_reads_like_this() -> None:
    url = "http://127.0.0.1:9999/v1?key=secret#also"
    assert Allowlist.parse([]).decide(url) == Refused(
        "http://127.0.0.1:9999/v1 is not allowed; this would allow it: STREAMKEEP_ALLOW=http://127.0.0.1:9999/**"
    )
    assert Allowlist.parse(["https://api.example.com/**"]).decide(url) == Refused(
        "http://127.0.0.1:9999/v1 is not allowed; adding this to STREAMKEEP_ALLOW would allow it: http://127.0.0.1:9999/**"
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/v1?key=s3cret",
        "https://evil.example/v1#s3cret",
        "https://me:s3cret@evil.example/",
        "https://s3cret@evil.example/v1?key=s3cret",
        "https://me:s3?cret@evil.example/s3cret",
        "https://me:x/s3cret@evil.example/",
        "mailto:s3cret@evil.example",
        "not a url?key=s3cret",
        "https://evil.example\\?key=s3cret",
    ],
)
def test_a_refusal_tells_no_secrets(url: str) -> None:
    decision = Allowlist.default().decide(url)
    assert isinstance(decision, Refused)
    assert "s3cret" not in decision.message


def test_the_defaults_are_the_public_apis_and_the_demo_vendor() -> None:
    allowlist = Allowlist.default()
    assert allowlist.globs == DEFAULT_GLOBS
    for url in ("https://api.openai.com/v1/chat/completions", "https://api.anthropic.com/v1/messages"):
        assert is_private(allowlist.decide(url)) is False
    for url in ("http://127.0.0.1:4001/v1/x", "http://localhost:4001/"):
        assert is_private(allowlist.decide(url)) is True
    for url in ("http://api.openai.com/", "http://127.0.0.1:4000/", "http://127.0.0.1/", "https://openai.com/"):
        assert isinstance(allowlist.decide(url), Refused)


def test_an_empty_list_refuses_everything() -> None:
    assert isinstance(Allowlist.parse([]).decide("https://api.openai.com/"), Refused)


@pytest.mark.parametrize(
    "glob",
    [
        "",
        "https://",
        "ftp://example.com",
        "https://user@example.com",
        "https://example.com/v1?x=1",
        "https://example.com/v1#x",
        "https://example.com/a,b",
        "https://example.com/v1/*x",
        "https://example.com/**/v1",
        "https://example.com/v1/***",
        "https://example.com/../x",
        "https://example.com/a%2fb",
        "https://example.com:0",
        "https://example.com:99999",
        "https://example.com:80*",
        "https://exa mple.com",
        "https://example.com\\x",
        "https://**.example.com",
        "https://*.exämple.com",
        "https://*..example.com",
        "https://[::1",
        "https://[*]",
        "http://10.0.0.*",
        "private:http://*",
        "private:https://*:8000/v1/**",
        "private:ftp://example.com",
        "private:private:http://example.com",
        "public:http://example.com",
        "http://127.1",
        "http://2130706433",
    ],
)
def test_a_bad_glob_is_named_with_its_reason(glob: str) -> None:
    with pytest.raises(AllowlistError) as failure:
        Allowlist.parse(["https://example.com", glob])
    assert failure.value.glob == glob
    assert repr(glob) in str(failure.value)
    assert failure.value.reason


PUBLIC_ADDRESSES = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "198.17.255.255",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2606:4700::5efe:8.8.8.8",
]

OTHER_ADDRESSES = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.255", "168.63.129.16", "169.254.0.0", "169.254.169.254", "172.16.0.0"),
    *("172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.0.0", "198.18.0.1", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::2", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0.0.0.0"),
    *("::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1"),
    *("64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8", "100::1", "2001::1", "2001:0:7f00:1::", "2001:db8::1"),
    *("2001:10::1", "2001:20::1", "2002:7f00:1::", "2002:a00:1::", "2002:808:808::1", "3fff::1", "4000::1", "5f00::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fe80::1%2", "fec0::1", "ff02::1", "ff0e::1"),
    *("2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1", "", "localhost", "127.1", "not an address"),
]


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize("address", OTHER_ADDRESSES)
def test_any_other_address_is_not(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize(
    "host", ["api.example.com", "8.8.8.8", "[2606:4700::1]", "local.example", "internal.example.com"]
)
def test_a_name_with_a_public_meaning_is_not_private(host: str) -> None:
    assert not is_private_host(host)


REACHED = [
    # host, address, and whether it is reached without and with permission for addresses that are not public
    ("api.example.com", "8.8.8.8", True, True),
    ("api.example.com", "10.0.0.5", False, True),
    ("api.example.com", "192.168.1.5", False, True),
    ("api.example.com", "172.20.0.5", False, True),
    ("api.example.com", "100.64.0.5", False, True),
    ("api.example.com", "127.0.0.1", False, True),
    ("api.example.com", "::1", False, True),
    ("api.example.com", "fd12::5", False, True),
    ("api.example.com", "0.0.0.0", False, False),
    ("api.example.com", "169.254.169.254", False, False),
    ("api.example.com", "100.100.100.200", False, False),
    ("api.example.com", "168.63.129.16", False, False),
    ("api.example.com", "192.0.0.192", False, False),
    ("api.example.com", "fd00:ec2::254", False, False),
    ("api.example.com", "fe80::1", False, False),
    ("api.example.com", "224.0.0.1", False, False),
    ("api.example.com", "255.255.255.255", False, False),
    ("api.example.com", "::ffff:10.0.0.5", False, False),
    ("api.example.com", "2002:a00:5::", False, False),
    ("metadata.google.internal", "169.254.169.254", False, False),
    ("169.254.169.254", "169.254.169.254", False, True),
    ("fd00:ec2::254", "fd00:ec2:0::254", False, True),
    ("::ffff:10.0.0.5", "::ffff:a00:5", False, True),
    ("10.0.0.5", "169.254.169.254", False, False),
    ("0.0.0.0", "127.0.0.1", False, True),
    ("localhost", "127.0.0.1", False, True),
    ("LOCALHOST.", "::1", False, True),
    ("localhost", "10.0.0.5", False, False),
    ("api.localhost", "fd12::5", False, False),
    ("api.example.com", "not an address", False, False),
    ("", "", False, False),
]


@pytest.mark.parametrize(("host", "address", "freely", "with_permission"), REACHED)
def test_a_name_never_leads_where_only_a_spelled_address_may(
    host: str, address: str, freely: bool, with_permission: bool
) -> None:
    assert may_reach(host, address, may_be_private=False) is freely
    assert may_reach(host, address, may_be_private=True) is with_permission
