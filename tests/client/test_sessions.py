"""A durable session on a real stream, as its readers see it."""

from __future__ import annotations

from streamkeep.client import DurableStream
from streamkeep.client.sessions import SessionFold
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
