"""What commands write to standard output: bytes, and rows of a list."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click


def write(data: bytes) -> None:
    """Write all of it, at once. An unbuffered output may take a part only, and tell of a closed pipe at the next one."""
    left = memoryview(data)
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


def write_rows(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; elsewhere a line for each row, with tabs between its columns. None is shown as `-`."""
    shown = (["-" if value is None else str(value) for value in row] for row in rows)
    if not sys.stdout.isatty():
        for row in shown:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, header_style="bold", pad_edge=False)
    for row in shown:
        table.add_row(*map(Text, row))
    Console().print(table)
