"""Event sourcing: a stock that is nothing but its events, changed by any number of programs at once.

Start `make run` first; then `python examples/event_sourcing.py http://127.0.0.1:4000/v1/stream/stock/apples +5`, and `-3`, and `0`.
What is there is the sum of what happened. Whoever decides on it says what he had seen, so that nobody takes what is gone.
"""

import sys
from functools import reduce
from typing import Any

from streamkeep.client import DurableStream, SequenceConflict


def apply(stock: int, event: dict[str, Any]) -> int:
    """The stock after an event."""
    return stock + int(event["change"])


def change(stream: DurableStream, amount: int) -> int | None:
    """Put in or take out; the stock after it, or None where there is not as much."""
    while True:
        events = stream.read().json()
        stock = reduce(apply, events, 0)
        if stock + amount < 0:
            return None
        if amount == 0:
            return stock
        try:
            # Refused if somebody has written the same number meanwhile: then look again.
            stream.append({"change": amount}, seq=f"{len(events) + 1:012d}")
        except SequenceConflict:
            continue
        return stock + amount


def main(url: str, amount: str) -> None:
    with DurableStream.create(url, content_type="application/json") as stream:
        stock = change(stream, int(amount))
    print("refused: there is not as much" if stock is None else f"in stock: {stock}")


if __name__ == "__main__":
    main(*sys.argv[1:])
