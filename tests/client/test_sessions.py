"""A durable session on a real stream, as its readers see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamkeep.client import DurableStream
from streamkeep.client.sessions import AsyncDurableChat, DurableChat, SessionFold, Sessions
from tests.client.streaming import call, created
from tests.serving import Proxy
from tests.sessions.session_rows import recorded_session


async def test_the_end_of_a_message_is_where_a_fork_begins(proxy: Proxy, session: str) -> None:
    url = f"{proxy.url}/v1/stream/{session}"
    source = await created("sync", url, content_type="application/json")
    assert isinstance(source, DurableStream)
    for row_ in recorded_session():
        await call(source.append, row_)
    fold = SessionFold()
    data = await call(source.read)
    fold.apply(data.json(), data.offset)
    for message in fold.messages:
        fork = await call(
            source.fork, f"{url}-{message.id}", offset=message.end.offset, sub_offset=message.end.sub_offset
        )
        copied = SessionFold()
        copied.apply((await call(fork.read)).json(), "x")
        assert copied.messages == fold.messages[: len(copied.messages)]
        assert copied.messages[-1].id == message.id
    await call(source.disconnect)


@pytest.mark.parametrize("session_id", ["", ".", "..", "a/b", " a", "-a", "\u00e4", "a" * 201])
def test_an_id_that_no_session_can_have_is_refused_and_nothing_is_asked(session_id: str) -> None:
    nowhere = "http://127.0.0.1:9"
    with Sessions(nowhere) as sessions:
        calls: list[Callable[[str], object]] = [
            *(sessions.create, sessions.get, sessions.delete, sessions.export, sessions.fork),
            lambda id: sessions.rename(id, "name"),
            lambda id: sessions.fork("a", new_session_id=id),
            lambda id: sessions.compare("a", id),
            lambda id: DurableChat(nowhere, id),
            lambda id: AsyncDurableChat(nowhere, id),
        ]
        for call_with in calls:
            with pytest.raises(ValueError, match="session id"):
                call_with(session_id)
