"""A store that keeps everything on another server of the open protocol; `_store.py` says how."""

from streamkeep.storage.remote._store import RemoteStore, check

__all__ = ["RemoteStore", "check"]
