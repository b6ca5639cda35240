"""The server's part of the `streamkeep` command alone: `python -m streamkeep.proxy serve`, and the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from streamkeep.proxy.keys_command import keys_command
from streamkeep.proxy.serve_command import serve_command
from streamkeep.proxy.tenants_command import tenants_command
from streamkeep.proxy.vendor import vendor_command


@click.group(commands=[serve_command, keys_command, tenants_command, vendor_command])
def commands() -> None:
    """The server's commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    try:
        code: int | None = commands.main(argv, prog_name="streamkeep", standalone_mode=False, obj=os.environ)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except click.Abort:
        return 130
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
