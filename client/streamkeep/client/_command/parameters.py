"""Parameters that several commands have."""

from __future__ import annotations

import re

import click

_SPAN = re.compile(r"([0-9]{1,9})([smhdw]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


def seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A length of time, as an option's callback."""
    if value is None:
        return None
    match = _SPAN.fullmatch(value)
    if match is None:
        raise click.BadParameter("must be a number of seconds, or like 90m, 12h, 30d", context, parameter)
    return int(match[1]) * _UNITS[match[2]]


as_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")
