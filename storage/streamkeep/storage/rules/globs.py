"""Globs over stream paths (protocol 6.2): `*` is one segment, or any text inside one; `**` is any number of segments, none too.

Matching takes the earliest fit from left to right and never goes back, so no pattern makes it slow.
"""

from __future__ import annotations

from collections.abc import Sequence

_RESERVED = "__"


def matches(pattern: str, path: str) -> bool:
    """Whether a stream's path matches. The server's own streams (`__…`) match only a pattern that spells their mark."""
    if path.startswith(_RESERVED) and not pattern.startswith(_RESERVED):
        return False
    runs = _runs(pattern)
    segments = path.split("/")
    first, *others = runs
    if not _fits(first, segments[: len(first)]):
        return False
    if not others:
        return len(segments) == len(first)
    *middle, last = others
    at, end = len(first), len(segments) - len(last)
    for run in middle:
        while at + len(run) <= end and not _fits(run, segments[at : at + len(run)]):
            at += 1
        at += len(run)
    return at <= end and _fits(last, segments[end:])


def literal_prefix(pattern: str) -> str:
    """What every matching path begins with."""
    prefix, star, rest = pattern.partition("*")
    # `a/**` matches `a` as well.
    return prefix.removesuffix("/") if star and rest.startswith("*") else prefix


def _runs(pattern: str) -> list[list[str]]:
    """The segments between `**` and `**`."""
    runs: list[list[str]] = [[]]
    for segment in pattern.split("/"):
        if segment == "**":
            runs.append([])
        else:
            runs[-1].append(segment)
    return runs


def _fits(run: Sequence[str], segments: Sequence[str]) -> bool:
    return len(run) == len(segments) and all(map(_segment_fits, run, segments))


def _segment_fits(pattern: str, segment: str) -> bool:
    first, *others = pattern.split("*")
    if not others:
        return pattern == segment
    if not segment.startswith(first):
        return False
    *middle, last = others
    at = len(first)
    for piece in middle:
        found = segment.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return len(segment) - len(last) >= at and segment.endswith(last)
