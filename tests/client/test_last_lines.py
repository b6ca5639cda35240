"""The last lines of a stream, in bounded memory, however it is cut."""

from __future__ import annotations

from streamkeep.client._rules.last_lines import LastLines

TEXT = b"one\n\ntwo\r\nthree\nfour"


def shown(*pieces: bytes, lines: int = 100, max_bytes: int = 100) -> bytes:
    last = LastLines(lines, max_bytes=max_bytes)
    for piece in pieces:
        last.feed(piece)
    return last.shown()


def test_the_last_lines_are_the_same_however_the_bytes_are_cut() -> None:
    for cut in range(len(TEXT)):
        assert shown(TEXT[:cut], TEXT[cut:], lines=2) == b"two\r\nthree\nfour"
        assert shown(TEXT[:cut], TEXT[cut:]) == TEXT


def test_of_more_bytes_than_are_kept_the_end_is_shown() -> None:
    assert shown(TEXT, max_bytes=11) == b"three\nfour"
    assert shown(b"x" * 50, b"y" * 50, max_bytes=60) == b"x" * 10 + b"y" * 50
    assert shown(b"x" * 500 + b"\n", max_bytes=60) == b""
    assert shown(*[b"line\n"] * 1000, max_bytes=60) == b"line\n" * 12
    assert shown() == b""
