"""What makes a call resume instead of being sent: the headers by which `DurableTransport` is steered."""

from __future__ import annotations


def resume_headers(session_id: str, *, request_id: str | None = None) -> dict[str, str]:
    """Headers with which a call of any SDK over `DurableTransport` resumes, from the first byte, and never goes upstream.

    It resumes the named request, or else the session's newest; what the call itself asks for is of no matter.
    """
    headers = {"X-Session-ID": session_id, "X-Resume-Active-Generation": "true"}
    return headers if request_id is None else {**headers, "X-Request-ID": request_id}
