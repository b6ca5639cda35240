"""What every `GenerationStore` does, and every `MessageStore`, as tests: subclass them beside your own and run pytest.

class TestMyStore(GenerationStoreContract):
    @pytest.fixture
    def store(self) -> Iterator[GenerationStore]:
        yield MyStore(...)          # an empty one for each test

The store may outlive a test, as a shared database does: every test has a session of its own.
"""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from streamkeep.client._messages import MessageStore
from streamkeep.client._rules.messages import Message, ToolCall
from streamkeep.client._stores import GenerationRecord, GenerationStore, RecordState

_PROXY = "http://127.0.0.1:4000"


class GenerationStoreContract:
    """The tests; `store` is a fixture of the subclass."""

    def test_a_record_comes_back_as_it_was_put(self, store: GenerationStore) -> None:
        for state in RecordState:
            one = replace(_record(_session()), state=state, position=5, handed_position=2**53 + 1)
            store.put(one)
            assert store.records(_PROXY, one.session_id) == [one]

    def test_a_record_takes_the_place_of_the_earlier_one(self, store: GenerationStore) -> None:
        session_id = _session()
        store.put(_record(session_id))
        later = replace(_record(session_id), position=7, handed_position=7, state=RecordState.ENDED)
        store.put(later)
        assert [(found.position, found.state) for found in store.records(_PROXY, session_id)] == [
            (7, RecordState.ENDED)
        ]

    def test_records_come_newest_creation_first(self, store: GenerationStore) -> None:
        session_id = _session()
        for request_id, age_seconds in (("b", 120), ("a", 60), ("c", 180)):
            store.put(_record(session_id, request_id, age_seconds=age_seconds))
        store.put(replace(_record(session_id, "c", age_seconds=180), position=3))
        assert [found.request_id for found in store.records(_PROXY, session_id)] == ["a", "b", "c"]

    def test_sessions_and_proxies_are_kept_apart(self, store: GenerationStore) -> None:
        one, other = _record(_session()), _record(_session())
        elsewhere = replace(one, proxy_url="http://elsewhere")
        for record in (one, other, elsewhere):
            store.put(record)
        assert store.records(_PROXY, one.session_id) == [one]
        assert store.records(_PROXY, other.session_id) == [other]
        assert store.records("http://elsewhere", one.session_id) == [elsewhere]
        assert store.records(_PROXY, _session()) == []

    def test_ids_of_all_characters_and_lengths_are_kept_apart(self, store: GenerationStore) -> None:
        session_id = f"{_session()}a.b_c~d:e@f-"
        request_ids = ["r", "R", "r.", "r_", "r%", "r" * 200]
        for number, request_id in enumerate(request_ids):
            store.put(_record(session_id, request_id, age_seconds=60 * number))
        assert [found.request_id for found in store.records(_PROXY, session_id)] == request_ids
        assert store.records(_PROXY, session_id[:-1]) == []

    def test_removing_touches_one_record_and_may_be_repeated(self, store: GenerationStore) -> None:
        session_id = _session()
        kept = _record(session_id, "b")
        for record in (_record(session_id, "a"), kept):
            store.put(record)
        for _ in range(2):
            store.remove(_PROXY, session_id, "a")
        store.remove(_PROXY, _session(), "a")
        assert store.records(_PROXY, session_id) == [kept]

    def test_threads_share_a_store(self, store: GenerationStore) -> None:
        session_id = _session()
        failures: list[Exception] = []

        def write(thread: int) -> None:
            try:
                for number in range(10):
                    store.put(_record(session_id, f"{thread}-{number}"))
            except Exception as exc:  # noqa: BLE001  # told to the thread that runs the test
                failures.append(exc)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (failures, len(store.records(_PROXY, session_id))) == ([], 40)


def _session() -> str:
    return f"contract-{uuid.uuid4()}"


def _record(session_id: str, request_id: str = "r", *, age_seconds: float = 0) -> GenerationRecord:
    """One of now, since stores drop what was not touched for long; with the microseconds that a store must keep."""
    at = datetime.now(UTC).replace(microsecond=678901) - timedelta(seconds=age_seconds)
    return GenerationRecord(_PROXY, session_id, request_id, at, at)


class MessageStoreContract:
    """What every `MessageStore` does; `messages` is a fixture of the subclass."""

    def test_a_question_and_its_answer_come_back_as_they_were_told(self, messages: MessageStore) -> None:
        session_id = _session()
        call = ToolCall("call-1", "weather", '{"city": "Zürich\\u0000"}')
        asked = [_message("user", "Grüße 🌊 \x00 \ud800"), _message("tool", "rain", tool_call_id="call-1")]
        answer = _message(
            "assistant", "It rains.", tool_calls=(call,), is_answer=True, is_partial=True, code="truncated"
        )
        messages.asked(session_id, asked, goes_on=False)
        messages.answered(session_id, answer)
        assert messages.list(session_id) == [*asked, answer]
        assert messages.list(_session()) == []

    def test_what_a_call_repeats_is_kept_once(self, messages: MessageStore) -> None:
        session_id = _session()
        question, answer = _message("user", "1?"), _message("assistant", "1!", is_answer=True)
        messages.asked(session_id, [question], goes_on=False)
        messages.answered(session_id, answer)
        repeated = [_message("user", "1?", "b"), _message("assistant", "1!", "b"), _message("user", "2?", "b")]
        messages.asked(session_id, repeated, goes_on=False)
        assert messages.list(session_id) == [question, answer, repeated[2]]
        messages.asked(session_id, [_message("user", "1?", "c")], goes_on=True)
        assert [message.text for message in messages.list(session_id)] == ["1?", "1!", "2?", "1?"]

    def test_a_whole_answer_takes_the_place_of_a_partial_one_and_not_the_other_way(
        self, messages: MessageStore
    ) -> None:
        session_id = _session()
        told = [("He", True), ("H", True), ("Hello", False), ("Hel", True)]
        seen = []
        for text, is_partial in told:
            messages.answered(session_id, _message("assistant", text, is_answer=True, is_partial=is_partial))
            seen.append([(message.text, message.is_partial) for message in messages.list(session_id)])
        assert seen == [[("He", True)], [("He", True)], [("Hello", False)], [("Hello", False)]]

    def test_clearing_touches_one_session_and_may_be_repeated(self, messages: MessageStore) -> None:
        session_id, other = _session(), _session()
        for each in (session_id, other):
            messages.asked(each, [_message("user", "Hello")], goes_on=False)
        for _ in range(2):
            messages.clear(session_id)
        assert (messages.list(session_id), len(messages.list(other))) == ([], 1)

    def test_threads_share_a_store_of_messages(self, messages: MessageStore) -> None:
        session_id = _session()

        def write(thread: int) -> None:
            for number in range(10):
                messages.answered(session_id, _message("assistant", "!", f"{thread}-{number}", is_answer=True))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert len({message.request_id for message in messages.list(session_id)}) == 40


def _message(role: str, text: str, request_id: str = "a", **fields: Any) -> Message:
    return Message(role, text, request_id, datetime.now(UTC), **fields)
