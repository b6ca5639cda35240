"""Values from and to JSON, by whatever describes them: a dataclass, a Pydantic model, or a JSON Schema."""

from __future__ import annotations

import json
import types
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from streamkeep.client._errors import InvalidEvent, InvalidMessage

T = TypeVar("T")

_JSON_TYPES = (str, int, float, bool, list, dict)
_JSON_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
_MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How values are read and written. Both raise InvalidEvent where a value is not what the schema admits."""

    decode: Callable[[object], T]
    encode: Callable[[T], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class MessageCodec(Generic[T]):
    """How a stream's messages are read and written: any JSON, not objects alone. Both raise InvalidMessage."""

    decode: Callable[[object], T]
    encode: Callable[[object], object]


def message_codec(schema: object) -> MessageCodec[Any]:
    """The codec for a dataclass, a Pydantic model, or a JSON Schema as a mapping. Written is an instance, or the JSON that
    makes one.

    Raises:
        TypeError: it is none of these.
        ImportError: as `codec_of`.
    """
    if isinstance(schema, Mapping):
        check = _checked_by(dict(schema))
        return MessageCodec(_of_message(check), _of_message(check))
    if isinstance(schema, type) and is_dataclass(schema):
        decode = _of_message(lambda value: _as_dataclass(schema, value, schema.__name__))
        encode = _of_message(_of_dataclass)
    elif isinstance(schema, type) and hasattr(schema, "model_validate"):
        model: Any = schema
        decode = _of_message(_pydantic_decoder(model))
        encode = _of_message(lambda value: value.model_dump(mode="json", by_alias=True))
    else:
        raise TypeError("a schema is a dataclass, a Pydantic model, or a JSON Schema")
    made: type[Any] = schema
    return MessageCodec(decode, lambda value: encode(value if isinstance(value, made) else decode(value)))


def _of_message(work: Callable[[Any], T]) -> Callable[[object], T]:
    def worked(value: object) -> T:
        try:
            return work(value)
        except InvalidEvent as exc:
            raise InvalidMessage(str(exc)) from exc

    return worked


def plain(value: Any) -> object:
    """What JSON can be made of, out of a Pydantic model or a dataclass. Raises: TypeError."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "model_dump") and not isinstance(value, type):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"a {type(value).__name__} is no JSON")


def header_of(schema: object) -> str:
    """A schema as a stream's creation carries it. Raises: TypeError, ValueError: it cannot be written as a JSON Schema."""
    text = json.dumps(json_schema_of(schema), separators=(",", ":"), allow_nan=False)
    return urlsafe_b64encode(text.encode()).decode("ascii").rstrip("=")


def json_schema_of(schema: object) -> dict[str, Any]:
    """The JSON Schema of a dataclass or a Pydantic model, as far as JSON knows their types; a JSON Schema as it is.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(schema, Mapping):
        return dict(schema)
    if isinstance(schema, type) and is_dataclass(schema):
        parts: dict[str, Any] = {}
        return {**_json_type_of(schema, parts), "$defs": parts}
    if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        made: dict[str, Any] = schema.model_json_schema()
        return made
    raise TypeError("a schema is a dataclass, a Pydantic model, or a JSON Schema")


def _json_type_of(hint: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """What JSON knows of a type; `parts` are the dataclasses in it, which may hold themselves."""
    if hint is None or hint is type(None):
        return {"type": "null"}
    if get_origin(hint) in (Union, types.UnionType):
        return {"anyOf": [_json_type_of(one, parts) for one in get_args(hint)]}
    if isinstance(hint, type) and is_dataclass(hint):
        name = hint.__qualname__
        if name not in parts:
            parts[name] = {}
            parts[name] |= _json_object_of(hint, parts)
        return {"$ref": f"#/$defs/{name}"}
    found = _JSON_NAMES.get(get_origin(hint) or hint)
    return {} if found is None else {"type": found}


def _json_object_of(cls: type[Any], parts: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    given = [one for one in fields(cls) if one.init]
    return {
        "type": "object",
        "properties": {one.name: _json_type_of(hints[one.name], parts) for one in given},
        "required": [one.name for one in given if one.default is MISSING and one.default_factory is MISSING],
    }


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


def _pydantic_decoder(model: Any) -> Callable[[object], Any]:
    def decode(value: object) -> Any:
        try:
            return model.model_validate(value)
        except ValueError as exc:
            raise _invalid(exc) from exc

    return decode


def _pydantic(model: Any) -> Codec[Any]:
    of_model = _pydantic_decoder(model)

    def decode(value: object) -> Any:
        return of_model(_as_object(value))

    # Written from a model that was checked when it was made, or is checked now.
    def encode(value: Any) -> dict[str, Any]:
        return (
            decode(value).model_dump(mode="json", by_alias=True)
            if isinstance(value, dict)
            else _as_object(value.model_dump(mode="json", by_alias=True))
        )

    return Codec(decode, encode)


def _json_schema(schema: dict[str, Any]) -> Codec[dict[str, Any]]:
    checked = _checked_by(schema)

    def check(value: object) -> dict[str, Any]:
        found: dict[str, Any] = checked(_as_object(value))
        return found

    return Codec(check, check)


def _checked_by(schema: dict[str, Any]) -> Callable[[object], Any]:
    """Gives a value back that is as a JSON Schema says."""
    return _checker(json.dumps(schema))


@lru_cache(maxsize=64)
def _checker(text: str) -> Callable[[object], Any]:
    schema = json.loads(text)
    try:
        from jsonschema.validators import validator_for
        from referencing import Registry
    except ImportError as exc:
        raise ImportError("JSON Schemas need `pip install 'streamkeep[state]'`") from exc
    validator_class = validator_for(schema)
    validator_class.check_schema(schema)
    # An empty registry fetches nothing that a schema refers to.
    validator = validator_class(schema, registry=Registry())

    def check(value: Any) -> object:
        error = next(iter(validator.iter_errors(value)), None)
        if error is not None:
            raise InvalidEvent(f"{error.json_path}: {error.message}"[:_MAX_REASON_CHARACTERS])
        return value

    return check


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
