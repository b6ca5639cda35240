"""Chunks that came together are merged before they are parsed: the parser says the same of both, whatever is sent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import h11
import httpx
import pytest

from streamkeep.client._network import Network
from streamkeep.client._rules.chunks import ChunkMerger
from tests.serving import CERTIFICATES

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PARTS = [b"a", b"\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"x" * 17, "naïve".encode()]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


BODY = b"".join(map(chunk, PARTS)) + b"0\r\n\r\n"


def merged(pieces: Iterable[bytes]) -> list[bytes]:
    merger = ChunkMerger()
    return [found for piece in pieces if (found := merger.feed(piece))]


def parsed(pieces: Iterable[bytes]) -> tuple[list[bytes], str]:
    """What the parser gives of a body, piece by piece, and how that ends."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    found: list[bytes] = []
    for piece in [HEAD, *pieces, b""]:
        parser.receive_data(piece)
        try:
            while (event := parser.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Data):
                    found.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    return found, "end"
        except h11.RemoteProtocolError:
            return found, "refused"
    raise AssertionError("neither ended nor refused")


def test_chunks_that_come_together_are_parsed_as_one() -> None:
    assert parsed(merged([BODY])) == ([b"".join(PARTS)], "end")
    assert parsed([BODY]) == (PARTS, "end")


def test_chunks_cut_at_any_two_bytes_are_the_same_body() -> None:
    for first in range(len(BODY)):
        for second in range(first, len(BODY), 7):
            pieces = [piece for piece in (BODY[:first], BODY[first:second], BODY[second:]) if piece]
            found, end = parsed(merged(pieces))
            assert (b"".join(found), end) == (b"".join(PARTS), "end"), (first, second)
    found, end = parsed(merged(BODY[at : at + 1] for at in range(len(BODY))))
    assert (b"".join(found), end) == (b"".join(PARTS), "end")


def test_merging_goes_on_after_a_cut_in_any_place() -> None:
    many = chunk(b"event") * 3
    for cut in range(1, len(many)):
        assert merged([many[:cut], many[cut:] + many])[-1].count(b"\r\n") < 9, cut


@pytest.mark.parametrize(
    "odd",
    [
        b"5;extension=1\r\nabcde\r\n",
        b"5 \r\nabcde\r\n",
        b"5\nabcde\n",
        b"5\r\nabcdeXX",
        b"5\r\nabcdef\r\n",
        b"-5\r\nabcde\r\n",
        b"0x5\r\nabcde\r\n",
        b"000000000005\r\nabcde\r\n",
        b"ffffffff\r\nabcde\r\n",
        b"fffffffff\r\nabcde\r\n",
        b"\r\n5\r\nabcde\r\n",
        b"zz\r\n",
        b"0\r\nTrailer: 3\r\n\r\n" + chunk(b"after"),
        b"",
    ],
)
def test_what_is_odd_is_left_to_the_parser(odd: bytes) -> None:
    wire = chunk(b"one") + chunk(b"two") + odd + chunk(b"three") * 2 + b"0\r\n\r\n"
    whole, end = parsed([wire])
    for cut in range(len(wire)):
        found, found_end = parsed(merged(filter(None, [wire[:cut], wire[cut:]])))
        # Both refuse the same, though one of them may have given a little less before.
        assert found_end == end, cut
        assert b"".join(whole).startswith(b"".join(found)), cut
        assert end == "refused" or b"".join(found) == b"".join(whole), cut


@contextmanager
def answering(*answers: list[bytes]) -> Iterator[str]:
    """A server with one connection, which sends these pieces in answer to one request after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for pieces in answers:
                    asked = b""
                    while not asked.endswith(b"\r\n\r\n"):
                        asked += connection.recv(65536)
                    for piece in pieces:
                        connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join()


def test_answers_on_one_connection_are_whole_however_they_come() -> None:
    answers = [
        [HEAD + BODY],
        [HEAD, BODY],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n5\r\nabc\r\n"],
        [HEAD + BODY[:1], BODY[1:]],
        [b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + BODY],
        [HEAD[:9], HEAD[9:] + BODY[:7], BODY[7:40], BODY[40:]],
    ]
    with answering(*answers) as url, httpx.Client(transport=Network(CERTIFICATES)) as client:
        found = [client.get(url).content for _ in answers]
    whole = b"".join(PARTS)
    assert found == [whole, whole, b"5\r\nabc\r\n", whole, whole, whole]


def test_a_body_that_breaks_off_is_an_error_of_httpx() -> None:
    with (
        answering([HEAD + BODY[:-9]]) as url,
        httpx.Client(transport=Network(CERTIFICATES)) as client,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        client.get(url)


def test_a_server_that_is_not_there_is_an_error_of_httpx() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with httpx.Client(transport=Network(CERTIFICATES)) as client, pytest.raises(httpx.ConnectError):
        client.get(f"http://127.0.0.1:{port}/")
