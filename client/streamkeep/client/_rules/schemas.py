"""Values of a collection from and to JSON, by whatever describes them: a dataclass, a Pydantic model, or a JSON Schema."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from streamkeep.client._errors import InvalidEvent

T = TypeVar("T")

_JSON_TYPES = (str, int, float, bool, list, dict)
_MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How values are read and written. Both raise InvalidEvent where a value is not what the schema admits."""

    decode: Callable[[object], T]
    encode: Callable[[T], dict[str, Any]]


def codec_of(schema: object) -> Codec[Any]:
    """The codec for a dataclass, a Pydantic model, a JSON Schema as a mapping, or for any JSON object where it is None.

    Raises:
        TypeError: it is none of these.
        ImportError: a JSON Schema needs the package `jsonschema`, which the extra `state` brings.
    """
    if schema is None:
        return Codec(_as_object, _as_object)
    if isinstance(schema, Mapping):
        return _json_schema(dict(schema))
    if isinstance(schema, type) and is_dataclass(schema):
        return Codec(lambda value: _as_dataclass(schema, value, schema.__name__), _of_dataclass)
    if isinstance(schema, type) and hasattr(schema, "model_validate"):
        return _pydantic(schema)
    raise TypeError("a schema is a dataclass, a Pydantic model, a JSON Schema, or None")


def _pydantic(model: Any) -> Codec[Any]:
    def decode(value: object) -> Any:
        try:
            return model.model_validate(_as_object(value))
        except ValueError as exc:
            raise _invalid(exc) from exc

    # Written from a model that was checked when it was made, or is checked now.
    def encode(value: Any) -> dict[str, Any]:
        return (
            decode(value).model_dump(mode="json")
            if isinstance(value, dict)
            else _as_object(value.model_dump(mode="json"))
        )

    return Codec(decode, encode)


def _json_schema(schema: dict[str, Any]) -> Codec[dict[str, Any]]:
    try:
        from jsonschema.validators import validator_for
        from referencing import Registry
    except ImportError as exc:
        raise ImportError("JSON Schemas need `pip install 'streamkeep[state]'`") from exc
    validator_class = validator_for(schema)
    validator_class.check_schema(schema)
    # An empty registry fetches nothing that a schema refers to.
    validator = validator_class(schema, registry=Registry())

    def check(value: object) -> dict[str, Any]:
        checked = _as_object(value)
        error = next(iter(validator.iter_errors(checked)), None)
        if error is not None:
            raise InvalidEvent(f"{error.json_path}: {error.message}"[:_MAX_REASON_CHARACTERS])
        return checked

    return Codec(check, check)


def _as_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidEvent("a value is a JSON object")
    return value


def _of_dataclass(value: Any) -> dict[str, Any]:
    if not is_dataclass(value) or isinstance(value, type):
        raise InvalidEvent(f"a value is an instance of its dataclass, not a {type(value).__name__}")
    found = asdict(value)
    _as_dataclass(type(value), found, type(value).__name__)
    return found


def _as_dataclass(cls: type[Any], value: object, where: str) -> Any:
    """An instance, with its fields checked as far as JSON knows their types. What it has no field for is left out."""
    found, hints = _as_object(value), get_type_hints(cls)
    names = {one.name for one in fields(cls) if one.init} & found.keys()
    given = {name: _as_type(hints[name], found[name], f"{where}.{name}") for name in names}
    try:
        return cls(**given)
    except (TypeError, ValueError) as exc:
        raise _invalid(exc) from exc


def _as_type(hint: Any, value: object, where: str) -> Any:
    if hint is None or hint is type(None):
        fits = value is None
    elif get_origin(hint) in (Union, types.UnionType):
        return _as_one_of(get_args(hint), value, where)
    elif isinstance(hint, type) and is_dataclass(hint):
        return _as_dataclass(hint, value, where)
    else:
        # A number is an int where it is whole, and a bool is no number.
        plain = get_origin(hint) or hint
        wanted = (int, float) if plain is float else plain
        fits = plain not in _JSON_TYPES or (isinstance(value, wanted) and (plain is bool) == isinstance(value, bool))
    if not fits:
        raise InvalidEvent(f"{where} is not {getattr(hint, '__name__', hint)}")
    return value


def _as_one_of(hints: tuple[Any, ...], value: object, where: str) -> Any:
    for hint in hints:
        try:
            return _as_type(hint, value, where)
        except InvalidEvent:
            continue
    raise InvalidEvent(f"{where} is none of {', '.join(str(getattr(hint, '__name__', hint)) for hint in hints)}")


def _invalid(error: Exception) -> InvalidEvent:
    return InvalidEvent(str(error)[:_MAX_REASON_CHARACTERS])
