"""The fields of a session request's JSON body, one by one, by what they may hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from streamkeep.proxy.rules.wire import BadRequest, is_id
from streamkeep.sessions.json_text import MAX_DEPTH, TooDeep, json_value
from streamkeep.storage.rules.texts import is_storable

MAX_BODY_BYTES = 1024 * 1024
MAX_NAME_CHARACTERS = 200

_MAX_ACTOR_CHARACTERS = 200
_MAX_TXID_CHARACTERS = 200
_MAX_CALL_ID_CHARACTERS = 512

Choice = TypeVar("Choice", bound=str)
Value = TypeVar("Value")


def bad(message: str, code: str = "invalid_body") -> BadRequest:
    return BadRequest(code, message)


class Fields:
    """A JSON object, of which each field is asked for by its kind. What it holds beyond that is passed over."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    @classmethod
    def parse(cls, body: bytes) -> Fields:
        """An empty body is an object without fields.

        Raises:
            BadRequest: it is no JSON object in UTF-8, is too deep, or holds what no other reader could take.
        """
        try:
            values = json_value((body or b"{}").decode())
        except TooDeep:
            raise bad(f"the body's JSON may be nested {MAX_DEPTH} times") from None
        except ValueError:
            raise bad("the body must be a JSON object, in UTF-8") from None
        if not isinstance(values, dict):
            raise bad("the body must be a JSON object")
        if b"\\ud" in body.lower() and not _is_unicode(values):
            raise bad("the body holds halves of characters")
        return cls(values)

    def any(self, name: str) -> Any:
        """Any JSON value. Raises: BadRequest: the field is missing."""
        if name not in self._values:
            raise bad(f"{name} is missing")
        return self._values[name]

    def optional(self, name: str) -> Any:
        """Any JSON value; null where there is none."""
        return self._values.get(name)

    def text(self, name: str, *, at_most: int = MAX_BODY_BYTES) -> str | None:
        """A text that is not empty, or None. Raises: BadRequest."""
        value = self._values.get(name)
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= at_most):
            raise bad(f"{name} is a text of 1 to {at_most} characters")
        return value

    def label(self, name: str, *, at_most: int = MAX_NAME_CHARACTERS) -> str | None:
        """A text that is shown in one line, or None. Raises: BadRequest."""
        value = self.text(name, at_most=at_most)
        if value is not None and not _is_label(value):
            raise bad(f"{name} holds characters that cannot be printed")
        return value

    def id(self, name: str) -> str | None:
        """One of our ids, or None. Raises: BadRequest."""
        value = self._values.get(name)
        if value is not None and not (isinstance(value, str) and is_id(value)):
            raise bad(f"{name} must match [A-Za-z0-9][A-Za-z0-9._~:@-]{{0,199}}", "invalid_id")
        return value

    def choice(self, name: str, choices: Mapping[str, Choice]) -> Choice | None:
        """One of some texts, or None. Raises: BadRequest."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or value not in choices:
            raise bad(f"{name} is one of {', '.join(choices)}")
        return choices[value]

    def flag(self, name: str) -> bool | None:
        """True, false or None. Raises: BadRequest."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise bad(f"{name} is true or false")
        return value

    def number(self, name: str, *, at_most: int) -> int | None:
        """A number above 0, or None. Raises: BadRequest."""
        value = self._values.get(name)
        if value is not None and not (type(value) is int and 0 < value <= at_most):
            raise bad(f"{name} is a number from 1 to {at_most}")
        return value

    def object(self, name: str) -> dict[str, Any] | None:
        """Raises: BadRequest."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, dict):
            raise bad(f"{name} is an object")
        return value

    def objects(self, name: str, *, at_most: int) -> list[dict[str, Any]] | None:
        """Raises: BadRequest."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > at_most or not all(isinstance(one, dict) for one in value):
            raise bad(f"{name} is a list of up to {at_most} objects")
        return value

    def txid(self) -> str | None:
        return self.label("txid", at_most=_MAX_TXID_CHARACTERS)

    def actor_id(self) -> str | None:
        return self.label("actorId", at_most=_MAX_ACTOR_CHARACTERS)

    def call_id(self, name: str) -> str | None:
        """An id that an agent chose."""
        return self.text(name, at_most=_MAX_CALL_ID_CHARACTERS)


def check_actor_id(value: str) -> str:
    """An actor's id from elsewhere than a body. Raises: BadRequest."""
    if not (0 < len(value) <= _MAX_ACTOR_CHARACTERS and _is_label(value)):
        raise bad(f"an actor's id has 1 to {_MAX_ACTOR_CHARACTERS} printable characters", "invalid_actor")
    return value


def needed(value: Value | None, name: str) -> Value:
    """Raises: BadRequest: it was left out."""
    if value is None:
        raise bad(f"{name} is missing")
    return value


def _is_label(text: str) -> bool:
    return text.isprintable() and is_storable(text)


def _is_unicode(values: Mapping[str, Any]) -> bool:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
