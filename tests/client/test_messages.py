"""Stores of messages, and what a call adds to a session's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streamkeep.client import MemoryMessageStore, Message, SQLiteMessageStore
from streamkeep.client._rules.messages import MAX_MESSAGE_CHARACTERS, MAX_MESSAGES, MAX_SESSION_CHARACTERS, joined
from streamkeep.client.store_contract import MessageStoreContract

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def said(*texts: str) -> list[Message]:
    """Messages by turns: capital letters are the user's."""
    return [Message("user" if text.isupper() else "assistant", text, "r", NOW) for text in texts]


class TestMemoryMessageStore(MessageStoreContract):
    @pytest.fixture
    def messages(self) -> MemoryMessageStore:
        return MemoryMessageStore()


class TestSQLiteMessageStore(MessageStoreContract):
    @pytest.fixture
    def messages(self, tmp_path: Path) -> Iterator[SQLiteMessageStore]:
        with closing(SQLiteMessageStore(tmp_path / "messages.sqlite3")) as store:
            yield store


@pytest.mark.parametrize(
    ("known", "asked", "goes_on", "result"),
    [
        ("", "A", False, "A"),
        ("A b", "A b C", False, "A b C"),
        ("A b C d", "A b C", False, "A b C"),
        ("A b C d", "A b E", False, "A b E"),
        ("A b C d", "C d E", False, "A b C d E"),
        ("A b C d", "E", False, "A b C d E"),
        ("A b A c", "A", False, "A b A"),
        ("A b C d", "A", True, "A b C d A"),
        ("A b", "A x C", False, "A x C"),
        ("A b C d", "X", True, "A b C d X"),
    ],
)
def test_what_a_call_asks_is_joined_to_what_is_known(known: str, asked: str, goes_on: bool, result: str) -> None:
    messages = joined(said(*known.split()), said(*asked.split()), goes_on=goes_on)
    assert [message.text for message in messages] == result.split()


def test_a_session_keeps_its_newest_messages() -> None:
    many = [Message("user", str(number), "r", NOW) for number in range(MAX_MESSAGES + 5)]
    assert joined([], many, goes_on=False) == many[5:]
    large = [Message("user", str(number) * MAX_MESSAGE_CHARACTERS, "r", NOW) for number in range(9)]
    kept = joined(large[:5], large[5:], goes_on=True)
    assert kept == large[-(MAX_SESSION_CHARACTERS // MAX_MESSAGE_CHARACTERS) :]


def test_a_session_to_which_nothing_was_added_for_long_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "messages.sqlite3"
    with closing(SQLiteMessageStore(path)) as store, closing(sqlite3.connect(path)) as database:
        for session in ("old", "new"):
            store.asked(session, said("A"), goes_on=False)
        database.execute("UPDATE sessions SET updated_at = updated_at - 7 * 24 * 3600 - 1 WHERE session_id = 'old'")
        database.commit()
        assert [len(store.list(session)) for session in ("old", "new")] == [0, 1]
        store.close()
        assert len(store.list("new")) == 1
        assert database.execute("SELECT session_id FROM messages").fetchall() == [("new",)]


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    with closing(SQLiteMessageStore(tmp_path / "state" / "messages.sqlite3")) as store:
        store.asked("s", said("A"), goes_on=False)
        assert {found.stat().st_mode & 0o777 for found in store.path.parent.iterdir()} == {0o600}
