"""Which demos there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demo:
    """One of them. `page` is the file that it shows and `port` where it does so; None for the one in the terminal."""

    name: str
    title: str
    summary: str
    page: str | None = None
    port: int | None = None

    @property
    def command(self) -> str:
        return f"streamkeep demo {self.name}"


TERMINAL = Demo(
    "python-terminal",
    "Python in the terminal",
    "A program that reads an answer is killed in the middle; another one reads on, and all bytes are there.",
)
DEMOS = (
    Demo(
        "chat-vercel",
        "Chat on the AI SDK's transport",
        "Messages, tools and Markdown in the form of useChat. Drop the line, reload in the middle, stop, try again.",
        "chat.html",
        5173,
    ),
    Demo(
        "chat-tanstack",
        "Chat on TanStack AI's connection",
        "The same over AG-UI events: each run is a generation, which a page that is loaded again joins.",
        "chat.html",
        5174,
    ),
    Demo(
        "plain-vs-durable",
        "Plain beside durable",
        "Two panes, one question. Drop the line, and see which of the two asks the model again, and what that costs.",
        "plain-vs-durable.html",
        5175,
    ),
    Demo(
        "sessions",
        "A session of two people and two agents",
        "Two browsers' panes and the events between them: drop one line, approve of a tool, branch off, see who types.",
        "sessions.html",
        5176,
    ),
    TERMINAL,
)


def find(name: str) -> Demo:
    """A demo by its name. Raises: KeyError."""
    return {demo.name: demo for demo in DEMOS}[name]
