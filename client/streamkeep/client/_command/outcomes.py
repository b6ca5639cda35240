"""How a command ends: one line on standard error for what went wrong, and an exit code for scripts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click
import httpx

from streamkeep.client import _errors as errors
from streamkeep.client._command.output import printable

FAILED = 1
MISUSED = 2
NOTHING_TO_RESUME = 3
UPSTREAM_REFUSED = 4
SERVER_REFUSED = 5
NOT_FOUND = 6
CONFLICT = 7
INTERRUPTED = 130
PIPE_CLOSED = 141

_ERRORS: dict[type[errors.StreamkeepError], int] = {
    errors.StreamNotFound: NOT_FOUND,
    errors.StreamGone: NOT_FOUND,
    errors.SessionNotFound: NOT_FOUND,
    errors.StreamExists: CONFLICT,
    errors.StreamClosed: CONFLICT,
    errors.SequenceConflict: CONFLICT,
    errors.SequenceGap: CONFLICT,
    errors.ProducerFenced: CONFLICT,
    errors.ServerError: SERVER_REFUSED,
    errors.Truncated: 10,
    errors.UpstreamFailed: 11,
    errors.TimedOut: 12,
    errors.Stalled: 13,
    errors.TooLarge: 14,
    errors.StorageUnavailable: 15,
    errors.OwnerLost: 16,
    errors.Shutdown: 17,
    errors.GenerationCancelled: 18,
}

ANSWER_ENDS = {"error": _ERRORS[errors.UpstreamFailed], "stop": _ERRORS[errors.GenerationCancelled]}
"""How a command ends whose last answer in a session ended so."""

EXIT_CODES = """\
\b
Exit codes:
  0  done                         10  truncated            16  owner_lost
  1  failed, or out of reach      11  upstream_failed      17  shutdown
  2  wrong usage                  12  timed_out            18  cancelled
  3  nothing to resume            13  stalled             130  interrupted (Ctrl-C)
  4  upstream refused             14  too_large           141  the output was closed
  5  the server refused           15  storage_unavailable
  6  there is no such stream, or session
  7  it is there, or closed, already
"""


@dataclass(slots=True)
class Outcome:
    """The exit code, once it is known."""

    code: int = FAILED


@contextmanager
def outcomes(*, color: bool | None) -> Iterator[Outcome]:
    """Turn whatever a command raises into a line on standard error, and an exit code.

    `color` is as in click: None for colours on terminals alone.
    """
    outcome = Outcome()
    try:
        try:
            yield outcome
            _flush()
        except click.exceptions.Exit as exc:
            outcome.code = exc.exit_code
            _flush()
    except click.exceptions.NoArgsIsHelpError as exc:
        outcome.code = exc.exit_code
        exc.show()
    except click.ClickException as exc:
        outcome.code = exc.exit_code
        complain(_advice(exc), color=color)
    except (KeyboardInterrupt, click.Abort):
        outcome.code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. What is still buffered for them must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.code = PIPE_CLOSED
    except (errors.StreamkeepError, httpx.TransportError, httpx.InvalidURL, OSError, ValueError) as exc:
        outcome.code = code_of(exc)
        complain(_reason(exc), color=color)


def _flush() -> None:
    if sys.stdout is not None:  # as it is where the caller closed it
        sys.stdout.flush()


def code_of(error: Exception) -> int:
    """The exit code for what went wrong."""
    if isinstance(error, errors.DeliveryFailed) and isinstance(error.__cause__, Exception):
        return code_of(error.__cause__)
    if isinstance(error, ValueError | httpx.InvalidURL | httpx.UnsupportedProtocol):
        return MISUSED  # an id, a URL or an offset that is none, as the client's own functions say it
    return next((code for kind, code in _ERRORS.items() if isinstance(error, kind)), FAILED)


def complain(message: str, *, color: bool | None = None) -> None:
    """One line on standard error."""
    click.echo(f"{click.style('streamkeep:', fg='red', bold=True)} {printable(message)}", err=True, color=color)


def note(message: str) -> None:
    """One line on standard error that is no complaint."""
    click.echo(f"{click.style('streamkeep:', fg='cyan')} {printable(message)}", err=True)


def _advice(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = " ".join(error.format_message().split()).rstrip(".")
    return message if context is None else f"{message} (see `{context.command_path} --help`)"


def _reason(error: Exception) -> str:
    if isinstance(error, errors.DeliveryFailed) and isinstance(error.__cause__, Exception):
        return f"{error}: {_reason(error.__cause__)}"
    return " ".join(str(error).split()) or type(error).__name__
