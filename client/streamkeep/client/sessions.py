"""Durable sessions: chats that many people, agents, tabs and devices share, out of the one stream in which they are written.

`DurableChat` takes part in one, `AsyncDurableChat` does so for asyncio, and `Sessions` is about all of a server's.

```python
agent = AgentSpec("gpt", "https://api.openai.com/v1/chat/completions", headers={"Authorization": f"Bearer {key}"})
with DurableChat("http://127.0.0.1:4000", "kitchen", name="Ann", agent=agent) as chat:
    chat.send_message("What shall we cook?")
    chat.wait_until_idle()
    print(chat.messages[-1].text)
```

`SessionFold` makes messages, tool calls, approvals and the rest out of a stream's events; it does no I/O. `whole_message` and the
like make such events, for programs that write to a session's stream themselves.

```python
fold = SessionFold()
with stream(url, offset=fold.offset) as events:
    for batch in events.iter_json_batches():
        changes = fold.apply(batch.items, batch.offset)
        for message_id in changes.message_ids:
            print(fold.message(message_id))
```
"""

from streamkeep.client._chat import AsyncDurableChat, ChatView, DurableChat
from streamkeep.client._rules.chats import ChatChanges, PendingWrite
from streamkeep.client._rules.session_calls import AgentSpec, Sent, SessionRecord, StartedTurn
from streamkeep.client._session_cache import SessionCache
from streamkeep.client._sessions import AsyncSessions, Sessions
from streamkeep.sessions.events import (
    Author,
    approval_response,
    chunk_row,
    presence_event,
    tool_result,
    whole_message,
)
from streamkeep.sessions.fold import SessionFold
from streamkeep.sessions.views import (
    ActiveGeneration,
    Agent,
    Approval,
    ForkedFrom,
    Message,
    OtherPart,
    Part,
    PartApproval,
    Participant,
    Place,
    Presence,
    SessionChanges,
    SessionInfo,
    SessionStatistics,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolCallPart,
    ToolResult,
    ToolResultPart,
    Turn,
    as_json,
)

__all__ = [
    "ActiveGeneration",
    "Agent",
    "AgentSpec",
    "Approval",
    "AsyncDurableChat",
    "AsyncSessions",
    "Author",
    "ChatChanges",
    "ChatView",
    "DurableChat",
    "ForkedFrom",
    "Message",
    "OtherPart",
    "Part",
    "PartApproval",
    "Participant",
    "PendingWrite",
    "Place",
    "Presence",
    "Sent",
    "SessionCache",
    "SessionChanges",
    "SessionFold",
    "SessionInfo",
    "SessionRecord",
    "SessionStatistics",
    "Sessions",
    "StartedTurn",
    "TextPart",
    "ThinkingPart",
    "ToolCall",
    "ToolCallPart",
    "ToolResult",
    "ToolResultPart",
    "Turn",
    "approval_response",
    "as_json",
    "chunk_row",
    "presence_event",
    "tool_result",
    "whole_message",
]
