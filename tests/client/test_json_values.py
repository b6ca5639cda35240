"""JSON values out of text that comes in pieces, cut everywhere."""

from __future__ import annotations

import json

import pytest

from streamkeep.client._rules.json_values import JsonValues

VALUES = b'{"a":"x\\"]},"} 12 [1,[2]]\n"s p" null\n{"b":[{}]}{"c":1} 1.50'
ARRAYS = b' [ {"a":"x\\\\"} , 12,[1,[2]] ,"s, ]p", null ]\n[][ 7 ]'


def values(text: bytes, size: int, *, of_arrays: bool) -> list[bytes]:
    splitting = JsonValues(of_arrays=of_arrays)
    found = [value for at in range(0, len(text), size) for value in splitting.feed(text[at : at + size])]
    return found + splitting.end()


@pytest.mark.parametrize("size", range(1, len(VALUES) + 1))
def test_values_are_found_however_the_text_is_cut(size: int) -> None:
    found = values(VALUES, size, of_arrays=False)
    assert [json.loads(value) for value in found] == [
        {"a": 'x"]},'}, 12, [1, [2]], "s p", None, {"b": [{}]}, {"c": 1}, 1.5,
    ]  # fmt: skip
    assert found[-1] == b"1.50"
    items = values(ARRAYS, size, of_arrays=True)
    assert [json.loads(item) for item in items] == [{"a": "x\\"}, 12, [1, [2]], "s, ]p", None, 7]


@pytest.mark.parametrize("text", [b'{"a":1', b"1,2", b"{]", b"]", b'"x', b"nul", b"[" * 100_000 + b"]" * 100_000])
def test_what_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|ends inside"):
        values(text, 7, of_arrays=False)


@pytest.mark.parametrize("text", [b"1", b'{"a":1}', b"[1", b"[1 2]", b"x[1]", b"[1]2", b"[}", b"[1}", b'["a]'])
def test_what_is_no_array_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|ends inside"):
        values(text, 3, of_arrays=True)


def test_a_value_has_a_largest_size() -> None:
    splitting = JsonValues(max_bytes=100)
    assert splitting.feed(b"1 " * 1000) == [b"1"] * 1000
    with pytest.raises(ValueError, match="more than 100 bytes"):
        splitting.feed(b'"' + b"x" * 100)
