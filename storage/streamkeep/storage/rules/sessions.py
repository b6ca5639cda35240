"""What a session's record may hold."""

from __future__ import annotations

from streamkeep.storage._errors import ItemRefused
from streamkeep.storage._sessions import MAX_AGENTS_BYTES, MAX_SESSION_NAME_LENGTH, SessionRecord
from streamkeep.storage.rules.texts import is_storable


def check_id(id: str) -> None:
    """Raises: ItemRefused."""
    if not id or not is_storable(id):
        raise ItemRefused(f"no session can have the id {id[:100]!r}")


def check_name(name: str | None) -> None:
    """Raises: ItemRefused."""
    if name is not None and (len(name) > MAX_SESSION_NAME_LENGTH or not is_storable(name)):
        raise ItemRefused(f"a name is Unicode text of at most {MAX_SESSION_NAME_LENGTH} characters, without NUL")


def check_agents(agents: bytes) -> None:
    """Raises: ItemRefused."""
    if len(agents) > MAX_AGENTS_BYTES:
        raise ItemRefused(f"the agents of a session take at most {MAX_AGENTS_BYTES} bytes")


def is_wanted(session: SessionRecord, tenant: str | None, text: str) -> bool:
    """Whether a listing shows a session."""
    return tenant in (None, session.key.tenant) and text.lower() in f"{session.key.id} {session.name or ''}".lower()
