"""JSON Schemas of streams: what a creation may ask for, and whether messages are as it asked.

Schemas come from outside, and are hostile. One is rebuilt before it is used, from the keywords that are known here alone,
so nothing else can cost anything. It refers to nothing but its own parts. Patterns are run by an engine whose time is
linear, and are small. What a check may cost is counted, keyword by keyword, in units of about a microsecond: references and
combinations can be written such that a line of JSON would take for ever.

`format` says nothing about validity here, as the specification has it by default.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NoReturn
from urllib.parse import unquote

from jsonschema import Draft4Validator, Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema

from streamkeep.storage.rules.schemas import schema_id

MAX_SCHEMA_BYTES = 16 * 1024
MAX_DEPTH = 32
MAX_PATTERN_ATOMS = 2000
"""How many characters or classes the patterns of a schema may match one after the other, repetitions multiplied out."""

_MAX_COMPILED = 64
_MAX_TOLD_CHARACTERS = 300
_BYTES_OF_ERROR_PER_UNIT = 100

_DIALECTS = {
    dialect.META_SCHEMA[name].rstrip("#"): dialect
    for dialect, name in (
        *((Draft4Validator, "id"), (Draft6Validator, "$id"), (Draft7Validator, "$id")),
        *((Draft201909Validator, "$id"), (Draft202012Validator, "$id")),
    )
}
_DEFAULT_DIALECT = Draft202012Validator.META_SCHEMA["$id"]

_OF_ONE_SCHEMA = frozenset(
    {
        *("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
_OF_MANY = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_OF_NAMED = frozenset({"$defs", "definitions", "dependencies", "dependentSchemas", "properties"})
_PLAIN = frozenset(
    {
        *("const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "maxContains", "maxItems"),
        *("maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum"),
        *("multipleOf", "pattern", "required", "type", "uniqueItems", "$ref"),
    }
)
_REFUSED = frozenset({"$dynamicRef", "$recursiveRef", "patternProperties"})
_MAY_BE_FALSE = frozenset(
    {"additionalItems", "additionalProperties", "items", "unevaluatedItems", "unevaluatedProperties"}
)

# Classes are those of ECMA 262, which JSON Schema names: the engine's own are of Unicode, and large.
_CLASSES = {"d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]"}
_REPETITION = re.compile(r"\{([0-9]{1,4})(?:(,)([0-9]{0,4}))?\}")


class InvalidSchema(ValueError):
    """This cannot be a stream's schema; the message says why."""


class TooDear(Exception):
    """The check costs more than it may."""


@dataclass(frozen=True, slots=True)
class Violation:
    """The first thing about a body that is not as the schema says: in which of its messages, at which JSON path."""

    index: int
    path: str
    reason: str


@dataclass(slots=True)
class _Budget:
    """What is left of a check's units, and what telling an error takes: it quotes the value."""

    units: int
    units_per_error: int

    def spend(self, units: int) -> None:
        self.units -= units
        if self.units < 0:
            raise TooDear


_BUDGET: ContextVar[_Budget] = ContextVar("_BUDGET")


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that was found sound. `text` is its normal form, by which it is compared and kept, and `id` its digest."""

    text: str
    id: bytes
    _validator: Any = field(repr=False, compare=False)

    def violation(self, messages: Sequence[bytes], units: int) -> Violation | None:
        """What is wrong with JSON messages, if anything is; they must be sound JSON.

        Raises:
            TooDear: more than so many units are needed to tell.
        """
        for index, message in enumerate(messages):
            budget = _Budget(units, 1 + len(message) // _BYTES_OF_ERROR_PER_UNIT)
            found = _BUDGET.set(budget)
            try:
                error = next(self._validator.iter_errors(_DECODER.decode(message.decode())), None)
            except _Repeated as exc:
                return Violation(index, "$", str(exc))
            except (ArithmeticError, RecursionError, ValueError):
                return Violation(index, "$", "it holds what cannot be checked: an immense number, or too much depth")
            finally:
                _BUDGET.reset(found)
            if error is not None:
                return Violation(index, _told(error.json_path), _told(_reason(error)))
            units = budget.units
        return None


def schema_of_header(value: str) -> Schema:
    """The schema that a header carries: its JSON text in base64, of either alphabet, with or without padding.

    Raises:
        InvalidSchema: it is no base64, too large, no JSON, or no schema that can be checked safely.
    """
    encoded = value.strip().replace("-", "+").replace("_", "/").rstrip("=")
    if len(encoded) > MAX_SCHEMA_BYTES * 4 // 3 + 4:
        raise InvalidSchema(f"a schema takes at most {MAX_SCHEMA_BYTES} bytes")
    try:
        text = b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode()
        normal = json.dumps(_DECODER.decode(text), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidSchema("a schema is sent as base64 of JSON in UTF-8") from None
    except (RecursionError, ValueError) as exc:
        raise InvalidSchema(_told(f"the schema is not JSON: {exc}")) from None
    if len(normal) > MAX_SCHEMA_BYTES:
        raise InvalidSchema(f"a schema takes at most {MAX_SCHEMA_BYTES} bytes")
    return compiled(normal)


@lru_cache(maxsize=_MAX_COMPILED)
def compiled(text: str) -> Schema:
    """The schema of a normal form. Raises: InvalidSchema."""
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise InvalidSchema("a schema is a JSON object")
    dialect = _DIALECTS.get(str(schema.get("$schema", _DEFAULT_DIALECT)).rstrip("#"))
    if dialect is None:
        raise InvalidSchema("$schema must name one of the drafts 4, 6, 7, 2019-09 and 2020-12")
    rebuilding = _Rebuilding()
    rebuilt = rebuilding.schema(schema, 0)
    for reference in rebuilding.references:
        _check_reference(rebuilt, reference)
    try:
        dialect.check_schema(rebuilt, format_checker=None)
    except RecursionError:
        raise InvalidSchema("the schema is nested too deeply") from None
    except SchemaError as exc:
        raise InvalidSchema(_told(f"{exc.json_path}: {exc.message}")) from None
    patterns = _patterns(rebuilding.patterns)
    counted = {name: _counted(check) for name, check in dialect.VALIDATORS.items()}
    counted |= {"pattern": _counted(partial(_check_pattern, patterns)), "uniqueItems": _counted(_check_unique)}
    return Schema(text, schema_id(text), extend(dialect, counted)(rebuilt))


class _Rebuilding:
    """Make a schema anew of what is known; `references` and `patterns` are what it holds of these."""

    def __init__(self) -> None:
        self.references: list[str] = []
        self.patterns: list[str] = []

    def schema(self, found: object, depth: int) -> dict[str, Any]:
        """Raises: InvalidSchema."""
        if isinstance(found, bool):
            return {} if found else {"not": {}}
        if not isinstance(found, dict):
            raise InvalidSchema("a schema is a JSON object, true or false")
        if depth > MAX_DEPTH:
            raise InvalidSchema(f"a schema is nested at most {MAX_DEPTH} deep")
        for name in found.keys() & _REFUSED:
            raise InvalidSchema(f"{name} cannot be checked here")
        if depth and "$id" in found:
            raise InvalidSchema("a part of a schema cannot have an $id here")
        self._note(found)
        return {
            name: self._value(name, value, depth)
            for name, value in found.items()
            if name in _PLAIN or name in _OF_ONE_SCHEMA or name in _OF_MANY or name in _OF_NAMED
        }

    def _value(self, name: str, value: object, depth: int) -> object:
        if name in _PLAIN or (value is False and name in _MAY_BE_FALSE):
            return value
        if name in _OF_NAMED:
            if not isinstance(value, dict):
                raise InvalidSchema(f"{name} is a JSON object")
            return {
                key: part if isinstance(part, list) else self.schema(part, depth + 1) for key, part in value.items()
            }
        if name in _OF_MANY and isinstance(value, list):
            return [self.schema(part, depth + 1) for part in value]
        return self.schema(value, depth + 1)

    def _note(self, found: dict[str, Any]) -> None:
        for name, noted in (("$ref", self.references), ("pattern", self.patterns)):
            if name in found:
                if not isinstance(found[name], str):
                    raise InvalidSchema(f"{name} is a text")
                noted.append(found[name])


def _check_reference(schema: object, reference: str) -> None:
    if not reference.startswith("#") or reference[1:2] not in ("", "/"):
        raise InvalidSchema(
            f"$ref leads to a part of the schema itself, such as #/$defs/name, not to {reference[:100]!r}"
        )
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, dict) and name in schema:
            schema = schema[name]
        elif isinstance(schema, list) and name.isdecimal() and int(name[:6]) < len(schema):
            schema = schema[int(name[:6])]
        else:
            raise InvalidSchema(f"$ref leads nowhere: {reference[:100]!r}")
    if not isinstance(schema, dict):
        raise InvalidSchema(f"$ref leads to what is no schema: {reference[:100]!r}")


# Patterns


def _patterns(patterns: Collection[str]) -> dict[str, SchemaValidator]:
    """Raises: InvalidSchema."""
    translated = {pattern: _translated(pattern) for pattern in patterns}
    if sum(atoms for _, atoms in translated.values()) > MAX_PATTERN_ATOMS:
        raise InvalidSchema(f"the patterns of a schema match at most {MAX_PATTERN_ATOMS} characters")
    made = {}
    for pattern, (text, _) in translated.items():
        try:
            made[pattern] = SchemaValidator(core_schema.str_schema(pattern=text, regex_engine="rust-regex"))
        except PatternError:
            raise InvalidSchema(
                f"the pattern {pattern[:100]!r} cannot be run in linear time: it is none, or looks around or back"
            ) from None
    return made


def _translated(pattern: str) -> tuple[str, int]:
    """A pattern as the engine reads it, and how many atoms it has, repetitions multiplied out. Raises: InvalidSchema."""
    pieces: list[str] = []
    sizes, last, position = [0], 0, 0
    while position < len(pattern):
        character, repetition = pattern[position], _REPETITION.match(pattern, position)
        position += 1
        piece = character
        if character == "\\":
            escaped = pattern[position : position + 1]
            position += 1
            if escaped in ("p", "P"):
                raise InvalidSchema("a pattern has no \\p here")
            piece = _CLASSES.get(escaped, f"\\{escaped}")
        if character == "(":
            sizes.append(0)
        elif character == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif repetition is not None:
            piece, position = repetition[0], repetition.end()
            sizes[-1] += last * (max(int(repetition[1]), int(repetition[3] or 0)) - 1)
        else:
            last = 1
            sizes[-1] += 1
        pieces.append(piece)
    return "".join(pieces), sum(sizes)


# Checks


_Check = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


def _counted(check: _Check) -> _Check:
    """The check of a keyword, with what it costs taken from the budget: it looks through its value and the instance."""

    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        budget = _BUDGET.get()
        budget.spend(1 + _size(value) + _size(instance))
        for error in check(validator, value, instance, schema) or ():
            budget.spend(budget.units_per_error)
            yield error

    return counted


def _size(value: object) -> int:
    if isinstance(value, list | dict):
        return len(value)
    return len(value) // _BYTES_OF_ERROR_PER_UNIT if isinstance(value, str) else 0


def _check_pattern(
    patterns: dict[str, SchemaValidator], _: object, pattern: str, instance: object, __: object
) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not patterns[pattern].isinstance_python(instance):
        yield ValidationError(f"{instance!r} does not match {pattern}")


def _check_unique(_: object, is_unique: bool, instance: object, __: object) -> Iterator[ValidationError]:
    """In one pass: the library compares all with all."""
    if is_unique and isinstance(instance, list):
        seen = {json.dumps(_comparable(each), sort_keys=True) for each in instance}
        if len(seen) < len(instance):
            yield ValidationError("its elements are not unique")


def _comparable(value: object) -> object:
    if isinstance(value, list):
        return [_comparable(each) for each in value]
    if isinstance(value, dict):
        return {name: _comparable(each) for name, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _reason(error: ValidationError) -> str:
    if len(error.message) <= _MAX_TOLD_CHARACTERS:
        return str(error.message)
    return f"it is not as {error.validator} says: {json.dumps(error.validator_value)}"


def _told(text: str) -> str:
    """A text as it may stand in an answer: names in it are the sender's, and may hold halves of characters."""
    return text[:_MAX_TOLD_CHARACTERS].encode(errors="backslashreplace").decode()


# Values. Numbers and objects are made by functions of Python's, which let other threads run (see `json_mode`).


class _Repeated(ValueError):
    """An object with the same name twice, of which readers would see the one or the other."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Repeated("an object has the same name twice")
    return made


def _integer(text: str) -> int:
    return int(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_no_constant)
