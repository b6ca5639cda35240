"""How deep JSON is nested, whatever its texts hold."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from streamkeep.sessions.json_text import TooDeep, json_value


def is_deeper(text: str, most: int) -> bool:
    """Whether it is refused for its depth, and not because it is no JSON."""
    try:
        json_value(text, max_depth=most)
    except TooDeep:
        return True
    except ValueError:
        return False
    return False


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("1", 0),
        ('"[[["', 0),
        ("[]", 1),
        ('{"[": "]"}', 1),
        ("[1, {}, [2]]", 2),
        ('{"a": [{"b\\"[": []}], "c": {}}', 4),
        ("[[[", 3),
        ("]]][", 0),
        ('[["never ends [[[', 2),
        ("[\ud800[", 2),
        ("[" + '"]", [], ' * 5000 + "[[", 3),
        ("[],\n" * 40_000 + "[[[", 3),
        ('["' + "\\\\[" * 50_000 + '", ["[', 2),
    ],
)
def test_depth_is_that_of_brackets_outside_of_texts(text: str, depth: int) -> None:
    assert not is_deeper(text, depth)
    assert depth == 0 or is_deeper(text, depth - 1)


def test_a_text_of_nothing_but_brackets_takes_a_few_steps() -> None:
    lines, tracing = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    sys.settrace(trace)
    try:
        found = json_value("[" + "[]," * 10_000 + "true]")
    finally:
        sys.settrace(tracing)
    assert (len(found), lines < 1000) == (10_001, True)


def test_a_large_text_lets_other_threads_run() -> None:
    calls = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(profile)
    try:
        json_value("[" + '{"a": "b"},' * 1000 + "[]]")
    finally:
        sys.setprofile(None)
    # The interpreter looks for those who wait where a function of Python's is called.
    assert calls > 1000
