"""The HTTP/1.1 reader by table and by cut, and what may not be written as a request."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from streamkeep.proxy.http1 import (
    MAX_INTERIM_RESPONSES,
    Framing,
    HeadTooLarge,
    InvalidRequest,
    MalformedResponse,
    ResponseDecoder,
    encode_head,
    framing_of,
    in_chunks,
)


@dataclass(frozen=True, slots=True)
class Whole:
    """A response that is complete: on its own, or once upstream has ended its side."""

    status: int
    body: bytes
    is_persistent: bool = True
    needs_end: bool = False
    is_head_request: bool = False


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_END = Whole(200, b"abc", is_persistent=False, needs_end=True)
WHOLE = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Whole(200, b"hello")),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Whole(200, b"")),
    (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", Whole(200, b"x")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\x00\xff\r\n", Whole(200, b"\x00\xff\r\n")),
    (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok", Whole(200, b"ok", is_persistent=False)),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Whole(200, b"ok", is_persistent=False)),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", Whole(200, b"ok")),
    (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", Whole(200, b"abc")),
    (CHUNKED + b"0\r\n\r\n", Whole(200, b"")),
    (
        CHUNKED + b"3;name=value\r\nabc\r\nA\r\n0123456789\r\n00\r\nTrailer: dropped\r\n\r\n",
        Whole(200, b"abc0123456789"),
    ),
    (b"HTTP/1.1 200 OK\r\n\r\nabc", UNTIL_END),
    (b"HTTP/1.0 200 OK\r\n\r\nabc", UNTIL_END),
    (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\nabc", UNTIL_END),
    (b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", Whole(204, b"")),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Whole(304, b"")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Whole(200, b"", is_head_request=True)),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Whole(200, b"", is_head_request=True)),
    (b"HTTP/1.1 200 OK\r\n\r\n", Whole(200, b"", is_head_request=True)),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Whole(200, b"ok")),
    (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 104 X\r\n\r\nHTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n",
        Whole(429, b""),
    ),
    (b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n", Whole(302, b"")),
    (b"HTTP/1.1 200 OK\r\nUpgrade: h2\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok", Whole(200, b"ok")),
]


def decoded(pieces: list[bytes], expected: Whole) -> ResponseDecoder:
    decoder = ResponseDecoder(is_head_request=expected.is_head_request)
    for piece in pieces:
        decoder.feed(piece)
    assert decoder.is_complete is not expected.needs_end
    decoder.finish()
    return decoder


def feed_in_steps(decoder: ResponseDecoder, wire: bytes, step: int) -> None:
    for at in range(0, len(wire), step):
        decoder.feed(wire[at : at + step])


@pytest.mark.parametrize(("wire", "expected"), WHOLE)
def test_a_response_reads_the_same_wherever_it_is_cut(wire: bytes, expected: Whole) -> None:
    heads = set()
    for cut in range(len(wire) + 1):
        decoder = decoded([wire[:cut], wire[cut:]] if 0 < cut < len(wire) else [wire], expected)
        assert decoder.head is not None
        assert (decoder.head.status, decoder.take(), decoder.is_complete) == (expected.status, expected.body, True)
        assert decoder.head.is_persistent is expected.is_persistent or expected.is_head_request
        assert not decoder.has_surplus
        heads.add((decoder.head.status, decoder.head.reason, decoder.head.version, tuple(decoder.head.headers)))
    assert len(heads) == 1


@pytest.mark.parametrize(("wire", "expected"), WHOLE)
def test_a_response_reads_the_same_byte_by_byte(wire: bytes, expected: Whole) -> None:
    assert decoded([bytes([byte]) for byte in wire], expected).take() == expected.body


@pytest.mark.parametrize(("wire", "expected"), [row for row in WHOLE if not row[1].needs_end])
@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"x", b"\x00"])
def test_what_follows_a_response_is_no_part_of_it(wire: bytes, expected: Whole, surplus: bytes) -> None:
    for pieces in ([wire + surplus], [wire, surplus]):
        decoder = decoded(pieces, expected)
        assert decoder.has_surplus
        assert decoder.take() == expected.body


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_a_response_cut_off_anywhere_is_never_complete(wire: bytes) -> None:
    for cut in range(len(wire)):
        decoder = ResponseDecoder()
        if cut:
            decoder.feed(wire[:cut])
        with pytest.raises(MalformedResponse):
            decoder.finish()
        assert not decoder.is_complete


MALFORMED = {
    b"HELLO\r\n\r\n": b"",
    b"GET / HTTP/1.1\r\n\r\n": b"",
    b"HTTP/2.0 200 OK\r\n\r\n": b"",
    b"HTTP/0.9 200 OK\r\n\r\nabc": b"",
    b"HTTP/1.1 099 X\r\n\r\n": b"",
    b"HTTP/1.1 1000 X\r\n\r\n": b"",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc": b"",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\nabc": b"",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok": b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok": b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok": b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok": b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok": b"",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n": b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok": b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok": b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nok": b"",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc": b"",
    **{
        b"HTTP/1.1 200 OK\r\n%b\r\n\r\n2\r\nok\r\n0\r\n\r\n" % line: b""
        for line in (
            b"Transfer-Encoding: chunked,",
            b"Transfer-Encoding: ,chunked",
            b"Transfer-Encoding: identity, chunked",
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding: chunked;q=1",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: \x0bchunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding : chunked",
            b"X: y\r\n Transfer-Encoding: chunked",
            b"X: y\r\n\tfolded\r\nTransfer-Encoding: chunked",
            b"X: y\nTransfer-Encoding: chunked",
            b"X: y\rTransfer-Encoding: chunked",
            b"X\x00: y\r\nTransfer-Encoding: chunked",
            b"X: y\x7f\r\nTransfer-Encoding: chunked",
            b": y\r\nTransfer-Encoding: chunked",
            b"X\r\nTransfer-Encoding: chunked",
        )
    },
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n": b"",
    b"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n": b"",
    b"HTTP/1.1 200 OK\r\nA: b\x00c\r\n\r\n": b"",
    CHUNKED + b"zz\r\nabc\r\n": b"",
    CHUNKED + b"3\r\nabc\r\n-1\r\n": b"abc",
    CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n": b"abc",
    CHUNKED + b"3\r\nabc\r\nfffffffffffffffff\r\n": b"abc",
    CHUNKED + b"3\nabc\n0\n\n": b"",
    CHUNKED + b"3\rabc\r\n0\r\n\r\n": b"",
    CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n": b"",
    CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n": b"",
    CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n": b"",
    CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n": b"",
    CHUNKED + b"3;\nabc\r\n0\r\n\r\n": b"",
    CHUNKED + b"3;\x00\r\nabc\r\n0\r\n\r\n": b"",
    CHUNKED + b"3\r\nabc\n0\r\n\r\n": b"abc",
    CHUNKED + b"3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n": b"abc",
}


@pytest.mark.parametrize(("wire", "good"), MALFORMED.items())
def test_a_malformed_response_is_refused_behind_the_bytes_before_the_fault(wire: bytes, good: bytes) -> None:
    for step in (1, 7, len(wire)):
        decoder = ResponseDecoder()
        with pytest.raises(MalformedResponse):
            feed_in_steps(decoder, wire, step)
        assert decoder.take() == good
        assert not decoder.is_complete


@pytest.mark.parametrize("step", [1, 1000, 10**6])
@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 9000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
        b"HTTP/1.1 200 " + b"a" * 9000,
        b"HTTP/1.1 103 Hints\r\nX: " + b"a" * 5000 + b"\r\n\r\nHTTP/1.1 200 OK\r\nX: " + b"a" * 5000,
        CHUNKED + b"0\r\n" + b"X: y\r\n" * 2000,
    ],
)
def test_a_head_has_a_limit(wire: bytes, step: int) -> None:
    decoder = ResponseDecoder(max_head_bytes=8192)
    with pytest.raises(HeadTooLarge):
        feed_in_steps(decoder, wire, step)


@pytest.mark.parametrize("step", [1, 1000])
def test_a_chunks_size_line_has_a_limit(step: int) -> None:
    decoder = ResponseDecoder(max_head_bytes=8192)
    decoder.feed(CHUNKED)
    feed_in_steps(decoder, b"3;" + b"a" * 8000 + b"\r\nabc\r\n3;" + b"a" * 8000 + b"\r\nabc\r\n", step)
    assert decoder.take() == b"abcabc"
    with pytest.raises(MalformedResponse, match="around its body"):
        feed_in_steps(decoder, b"3;" + b"a" * 10_000, step)


def test_a_large_body_behind_a_small_head_is_no_large_head() -> None:
    decoder = ResponseDecoder(max_head_bytes=100)
    decoder.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"a" * 5000)
    assert decoder.is_complete


def test_interim_responses_are_passed_over_up_to_a_limit() -> None:
    decoder = ResponseDecoder()
    for _ in range(MAX_INTERIM_RESPONSES):
        decoder.feed(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert decoder.head is None
    with pytest.raises(MalformedResponse, match="interim"):
        decoder.feed(b"HTTP/1.1 102 Processing\r\n\r\n")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5),
        (b"timeout=5, max=100", 5),
        (b"max=100,Timeout = 7", 7),
        (b"max=3", None),
        (b"x-timeout=1", None),
    ],
)
def test_upstreams_keep_alive_time_is_read(value: bytes, seconds: float | None) -> None:
    decoder = ResponseDecoder()
    decoder.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: %b\r\n\r\n" % value)
    assert decoder.head is not None
    assert decoder.head.keep_alive_seconds == seconds


def test_a_body_piece_is_handed_out_as_it_is_and_several_are_joined() -> None:
    decoder = ResponseDecoder()
    decoder.feed(CHUNKED + b"1\r\na\r\n2\r\nbc\r\n")
    assert (decoder.buffered_bytes, decoder.take(), decoder.buffered_bytes, decoder.take()) == (3, b"abc", 0, b"")
    decoder.feed(b"3\r\ndef\r\n")
    assert decoder.take() == b"def"


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET /x", b"/", []),
        ("GET\r\nA: b", b"/", []),
        ("", b"/", []),
        ("GÉT", b"/", []),
        ("GET", b"", []),
        ("GET", b"/a b", []),
        ("GET", b"/\r\nA: b", []),
        ("GET", b"/\xff", []),
        ("GET", b"/", [(b"A", b"b\r\nC: d")]),
        ("GET", b"/", [(b"A", b"b\nC: d")]),
        ("GET", b"/", [(b"A", b"b\rC: d")]),
        ("GET", b"/", [(b"A", b"b\0")]),
        ("GET", b"/", [(b"A b", b"c")]),
        ("GET", b"/", [(b"A:", b"c")]),
        ("GET", b"/", [(b"A\n", b"c")]),
        ("GET", b"/", [(b"", b"c")]),
    ],
)
def test_a_head_that_would_be_read_as_something_else_is_not_written(
    method: str, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    with pytest.raises(InvalidRequest):
        encode_head(method, target, headers)


def test_headers_are_written_in_order_and_as_given() -> None:
    head = encode_head("PATCH", b"/a?b=%20", [(b"Host", b"x"), (b"x-B", b"\xff;"), (b"A", b""), (b"x-B", b"2")])
    assert head == b"PATCH /a?b=%20 HTTP/1.1\r\nHost: x\r\nx-B: \xff;\r\nA: \r\nx-B: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "framing"),
    [
        ([], None),
        ([(b"content-length", b"12")], Framing(content_length=12)),
        ([(b"Content-Length", b"12"), (b"Content-Length", b"12")], Framing(content_length=12)),
        ([(b"Transfer-Encoding", b"Chunked")], Framing(is_chunked=True)),
    ],
)
def test_framing_is_what_the_headers_say(headers: list[tuple[bytes, bytes]], framing: Framing | None) -> None:
    assert framing_of(headers) == framing


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Content-Length", b"-1")],
        [(b"Content-Length", b"+1")],
        [(b"Content-Length", b"1_0")],
        [(b"Content-Length", b"1"), (b"Content-Length", b"2")],
        [(b"Content-Length", b"9" * 19)],
        [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"gzip")],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
    ],
)
def test_framing_that_two_servers_could_read_in_two_ways_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(InvalidRequest):
        framing_of(headers)


def test_an_empty_piece_does_not_end_a_chunked_body() -> None:
    assert (in_chunks(b""), in_chunks(b"a" * 26)) == (b"", b"1a\r\n" + b"a" * 26 + b"\r\n")
