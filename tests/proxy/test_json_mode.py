"""JSON mode on the way in: bodies become messages, raw; what is no JSON is refused, and never crashes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkeep.proxy.rules.json_mode import MAX_ARRAYS, InvalidJson, is_one_value, split_messages

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
spacing = st.sampled_from(["", " ", "\n", "\t\r\n  "])


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        (b"1", [b"1"]),
        (b' {"b": 1,  "a": 2} \n', [b'{"b": 1,  "a": 2}']),
        (b"null", [b"null"]),
        (b'"text"', [b'"text"']),
        (b"[]", []),
        (b" [ ] ", []),
        (b"[[]]", [b"[]"]),
        (b"[[1,2],[3,4]]", [b"[1,2]", b"[3,4]"]),
        (b"[[[1,2,3]]]", [b"[[1,2,3]]"]),
        (b'[ 1 , "a" ,\n{} ]', [b"1", b'"a"', b"{}"]),
        (b"12345678901234567890123456789", [b"12345678901234567890123456789"]),
        (b"[" + b"9" * 10_000 + b"]", [b"9" * 10_000]),
        (b"[1.0, 1e2, 1E+2, -0.0]", [b"1.0", b"1e2", b"1E+2", b"-0.0"]),
        (b'{"a":1,"a":2}', [b'{"a":1,"a":2}']),
        ('["✓", "\\u2713", "\\ud800"]'.encode(), ['"✓"'.encode(), b'"\\u2713"', b'"\\ud800"']),
    ],
)
def test_messages_keep_their_text(body: bytes, messages: list[bytes]) -> None:
    assert split_messages(body) == messages


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"[", b"]", b"[1", b"[1,", b"[1,]", b"[,]", b"[1 2]", b"{", b'{"a"}', b"{1:2}", b"1 2", b"[] []"),
        *(b"NaN", b"[NaN]", b'{"a": Infinity}', b"-Infinity", b"nul", b"'a'", b"01", b"+1", b".5", b"1.", b"0x1"),
        *(b'"\x1e"', b'"\n"', b"\x1e1", b'"\xff"', b"\xef\xbb\xbf1", b"1\x00", b"\x0b1", b"\xc2\xa01"),
        *(b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        split_messages(body)


@given(st.lists(values), spacing, spacing)
def test_the_elements_of_any_array_come_out_one_by_one(elements: list[object], before: str, between: str) -> None:
    texts = [json.dumps(element, ensure_ascii=False) for element in elements]
    try:
        body = (before + "[" + before + f"{between},{before}".join(texts) + between + "]" + between).encode()
    except UnicodeEncodeError:
        return
    assert split_messages(body) == [text.encode() for text in texts]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_messages_or_refused(body: bytes) -> None:
    try:
        messages = split_messages(body)
    except InvalidJson:
        return
    for message in messages:
        json.loads(message)


def test_a_body_of_too_many_arrays_is_refused_before_anything_is_made_of_it() -> None:
    most = b"[" + b",".join([b"[]"] * (MAX_ARRAYS - 1)) + b"]"
    assert len(split_messages(most)) == MAX_ARRAYS - 1
    more = b'{"a":[' + b",".join([b"[]"] * MAX_ARRAYS) + b"]}"
    with pytest.raises(InvalidJson, match="arrays"):
        split_messages(more)
    assert not is_one_value(more.decode())
