"""Durable sessions: chats that many people, agents, tabs and devices share, out of the one stream in which they are written.

`SessionFold` makes messages, tool calls, approvals and the rest out of a stream's events; it does no I/O.

```python
fold = SessionFold()
with stream(url, offset=fold.offset) as events:
    for batch in events.iter_json_batches():
        changes = fold.apply(batch.items, batch.offset)
        for message_id in changes.message_ids:
            print(fold.message(message_id))
```
"""

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
    "Approval",
    "ForkedFrom",
    "Message",
    "OtherPart",
    "Part",
    "PartApproval",
    "Participant",
    "Place",
    "Presence",
    "SessionChanges",
    "SessionFold",
    "SessionInfo",
    "SessionStatistics",
    "TextPart",
    "ThinkingPart",
    "ToolCall",
    "ToolCallPart",
    "ToolResult",
    "ToolResultPart",
    "Turn",
    "as_json",
]
