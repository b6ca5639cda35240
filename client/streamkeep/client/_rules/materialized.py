"""The values that the events of a state stream leave behind, by type and key."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from streamkeep.sessions.state_events import Change, Control, parse_event


class MaterializedState:
    """What a state stream says now: the last write of each key wins. Values are whatever JSON they are.

    `reset` makes everything before it void. `is_in_snapshot` is true between a snapshot's marks.
    """

    def __init__(self) -> None:
        self._values: dict[str, dict[str, Any]] = {}
        self.is_in_snapshot: bool = False

    def __repr__(self) -> str:
        counts = {type: len(values) for type, values in self._values.items()}
        return f"<MaterializedState {counts}>"

    def apply(self, event: object) -> Change | Control:
        """Take one event; what it said. Raises: InvalidEvent: it is malformed, and changed nothing."""
        found = parse_event(event)
        if isinstance(found, Control):
            if found.kind == "reset":
                self.clear()
            else:
                self.is_in_snapshot = found.kind == "snapshot-start"
        elif found.operation == "delete":
            values = self._values.get(found.type)
            if values is not None:
                values.pop(found.key, None)
                if not values:
                    del self._values[found.type]
        else:
            self._values.setdefault(found.type, {})[found.key] = found.value
        return found

    def apply_batch(self, events: Iterable[object]) -> None:
        """Take events in order. Raises: InvalidEvent: one is malformed; those before it were taken."""
        for event in events:
            self.apply(event)

    def get(self, type: str, key: str) -> Any:
        """One value, or None."""
        return self._values.get(type, {}).get(key)

    def of_type(self, type: str) -> MappingProxyType[str, Any]:
        """All values of a type by their keys, as a view."""
        return MappingProxyType(self._values.get(type, {}))

    @property
    def types(self) -> tuple[str, ...]:
        """The types that have values."""
        return tuple(self._values)

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self.is_in_snapshot = False
