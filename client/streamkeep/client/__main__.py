"""The `streamkeep` command: the client's subcommands, and those of the server where it is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from streamkeep.client._command.main import Formatter, commands
from streamkeep.client._command.outcomes import outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    click.Context.formatter_class = Formatter
    arguments = list(sys.argv[1:] if argv is None else argv)
    color = False if os.environ.get("NO_COLOR") else None
    with (
        outcomes(color=color) as outcome,
        commands.make_context("streamkeep", arguments, obj=os.environ, color=color) as context,
    ):
        outcome.code = commands.invoke(context)
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
