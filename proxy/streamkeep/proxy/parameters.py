"""What the commands share: parameters that are read by functions, and how they speak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases alone
    """A parameter that a function reads; its ValueError says what is wrong. The text is not quoted: it may be a secret."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


def say(line: str) -> None:
    """To standard output."""
    click.echo(line)


def complain(line: str) -> None:
    """To standard error."""
    click.echo(line, err=True)
