"""What commands write to standard output: bytes, and rows of a list."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from itertools import islice

import click

_TABLE_ROWS = 1000
# What a terminal obeys instead of showing it, and what has no bytes in UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def write(data: bytes) -> None:
    """Write all of it, at once. An unbuffered output may take a part only, and tell of a closed pipe at the next one."""
    if sys.stdout is None:
        raise click.ClickException("the standard output is closed")
    left = memoryview(data)
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


def printable(text: object) -> str:
    """A server's words for one line of output, with control characters and halves of characters as JSON escapes."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def write_rows(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; elsewhere a line for each row, with tabs between its columns. None is shown as `-`."""
    shown = (["-" if value is None else printable(value) for value in row] for row in rows)
    if not sys.stdout.isatty():
        for row in shown:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console, has_headings = Console(), True
    # By pages, each with widths of its own, so that a list of any length is shown as it comes.
    while page := list(islice(shown, _TABLE_ROWS)):
        columns = [Column(heading, overflow="fold") for heading in headings]
        table = Table(*columns, box=None, header_style="bold", pad_edge=False, show_header=has_headings)
        for row in page:
            table.add_row(*map(Text, row))
        console.print(table)
        has_headings = False
