"""Tables for people, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NOTHING = "-"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the same columns, as a table that is aligned in plain text too."""
    if not rows:
        return ""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)
