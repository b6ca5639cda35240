"""Records: whatever a command may hold comes back as it was."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from streamkeep.storage import (
    Append,
    Code,
    Ending,
    Generation,
    GenerationKey,
    Owner,
    Refusal,
    State,
    StoreError,
    StreamAppend,
    StreamKey,
    Terminal,
    UpstreamHead,
    Usage,
)
from streamkeep.storage.rules.records import decode_record, encode_record

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
HEAD = UpstreamHead(203, None, "gzip", (("x-odd", "caf\xe9 \u2603"), ("x-odd", 'nul \x00 "\udcff'), ("x", "")))
ROW = Generation(
    *(
        1,
        GenerationKey("t", "s", "r"),
        2,
        State.REFUSED,
        Owner(3, 2**52),
        4,
        5,
        b"\x00\xff",
        NOW,
        HEAD,
        Refusal(HEAD, b""),
    )
)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -1, 2**70, 1.5, float("inf"), "", "\x00\udcff\n", b"", bytes(range(256)), NOW),
        *((), ((),), (1, ("two", b"three")), State.RUNNING, ROW, Append(1, 2, b"\n")),
        Ending(ROW, Terminal(Code.COMPLETE, "o", 1, None, 2, Usage(None, 0, "vendor"), "detail"), 3),
        StreamAppend(StreamKey("t", "a/\u00e9"), b"x"),
    ],
)
def test_a_value_comes_back_as_it_was(value: object) -> None:
    line = encode_record("name", value)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_record(line) == ("name", value)


@pytest.mark.parametrize("make", [list, set, frozenset])
def test_every_collection_comes_back_as_a_tuple(make: Callable[[Any], object]) -> None:
    assert decode_record(encode_record(make([1]))) == ((1,),)


def test_fields_that_a_line_does_not_have_take_their_defaults() -> None:
    assert decode_record(b'[{"StreamAppend":[{"StreamKey":["t","a"]},{"bytes":""}]}]') == (
        StreamAppend(StreamKey("t", "a"), b""),
    )


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"",
            b"{}",
            b"1",
            b"[",
            b"\xff",
            b'[{"Unknown":[]}]',
            b'[{"Owner":[1,2,3]}]',
            b'[{"Owner":1}]',
            b'[{"bytes":"?"}]',
        ),
        *(b'[{"time":"soon"}]', b'[{"State":"asleep"}]', b'[{"a":1,"b":2}]', b"[{}]", b"[" * 100_000),
    ],
)
def test_what_nobody_wrote_is_an_error(line: bytes) -> None:
    with pytest.raises(StoreError):
        decode_record(line)


def test_a_value_without_a_form_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        encode_record(object())
