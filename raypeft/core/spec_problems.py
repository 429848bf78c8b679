"""What is wrong with a sweep file, in words: validation errors and odd values → problems.

The validator says where and that; the words come from the types (`spec_fields.Allowed`), the
values and the field's descriptions. This module decides no rule of the sweep file itself.
"""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from raypeft.core.spec_fields import Allowed
from raypeft.errors import Problem

MAX_SHOWN_CHARS = 80
"""Longer values are cut in messages."""

_MAX_INT = 2**63 - 1
"""What tables and other programs can hold."""

_MAX_DEPTH = 50
"""Levels of nesting. No setting needs ten; a value that holds itself has no end."""

_MISSING = object()


def shown(value: object) -> str:
    """Return a value as a sweep file would spell it, cut if it is long."""
    match value:
        case None:
            return "null"
        case str() | bool():
            text = json.dumps(value, ensure_ascii=not _writable(value))
        case dict() | list() | tuple() if not value:
            text = "an empty mapping" if isinstance(value, dict) else "an empty list"
        case dict():
            text = "a mapping"
        case list() | tuple():
            text = f"a list of {len(value)}"
        case date():
            text = f"{value.isoformat()} (a date)"
        case int() | float():
            text = repr(value)
        case _:
            text = f"a value of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…"


def place_of(parts: Iterable[str | int]) -> str:
    """Return a place such as `bases[0].adapters[2].path`."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part.isprintable() and part else json.dumps(part)
            text += f".{name}" if text else name
    return text


def plain_value(value: object) -> tuple[Any, list[Problem]]:
    """Return what JSON can hold of a value read from YAML, and a problem for everything else.

    What is refused (dates, binary, NaN, lone surrogates, huge integers, endless depth) stands as
    None; keys that are no text are left out.
    """
    problems: list[Problem] = []
    return _plain(value, (), problems), problems


def problems_of(error: ValidationError, model: type[BaseModel], raw: object) -> list[Problem]:
    """Return a validation error's problems, one for each place.

    Args:
        error: What the validator raised.
        model: The model of the whole file.
        raw: What was validated.
    """
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _problem(detail, model, raw)
        # A union complains once for each of its members; their words come from the whole union.
        problems.setdefault(problem.place, problem)
    # It also complains about a list as a whole where another member got as far as its items.
    return [
        problem
        for place, problem in problems.items()
        if not any(other.startswith(f"{place}[") for other in problems)
    ]


# --- values -----------------------------------------------------------------------------------


def _writable(value: object) -> bool:
    try:
        str(value).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: object, place: tuple[str | int, ...], problems: list[Problem]) -> Any:
    match value:
        case dict() | list() | tuple() if len(place) > _MAX_DEPTH:
            message = f"is nested too deeply, at most {_MAX_DEPTH} levels are allowed"
        case dict():
            return {
                key: _plain(item, (*place, key), problems)
                for key, item in value.items()
                if _is_text_key(key, place, problems)
            }
        case list() | tuple():
            return [_plain(item, (*place, i), problems) for i, item in enumerate(value)]
        case str() if not _writable(value):
            message = f"{shown(value)} holds half a character (a lone surrogate)"
        case float() if not math.isfinite(value):
            message = f"{value!r} is not allowed, expected a finite number"
        case int() if not -_MAX_INT <= value <= _MAX_INT:
            # Not shown: Python refuses to spell out integers of thousands of digits.
            message = f"the number is too large, at most {_MAX_INT} is allowed"
        case None | bool() | int() | float() | str():
            return value
        case _:
            message = f"{shown(value)} is not allowed here; put it in quotes to make it text"
    problems.append(Problem(place_of(place), message))
    return None


def _is_text_key(key: object, place: tuple[str | int, ...], problems: list[Problem]) -> bool:
    if isinstance(key, str) and _writable(key):
        return True
    problems.append(
        Problem(place_of(place), f"the key {shown(key)} is no text; put it in quotes to make it so")
    )
    return False


# --- errors of the validator ------------------------------------------------------------------


def _problem(detail: ErrorDetails, model: type[BaseModel], raw: object) -> Problem:
    loc = detail["loc"]
    if detail["type"] == "extra_forbidden":
        parts, level, _ = _walk(loc[:-1], model, raw)
        return _unknown_key(str(loc[-1]), parts, level, model)
    parts, annotation, value = _walk(loc, model, raw)
    place = place_of(parts)
    field = _field(parts, model)
    if detail["type"] == "missing":
        return Problem(place, f"is missing: {field.description if field else 'a value'}")
    if value is _MISSING:
        value = detail["input"]
    if detail["type"] == "value_error":
        return Problem(place, f"{shown(value)} {detail['ctx']['error']}")
    message = f"{shown(value)} is not allowed, expected {words(annotation)}"
    if value is None and field is not None and not field.is_required():
        return Problem(place, message, "leave the key out to take its default")
    return Problem(place, message, _remedy(value, annotation))


def _unknown_key(
    key: str, parts: Sequence[str | int], level: Any, root: type[BaseModel]
) -> Problem:
    place = place_of([*parts, key])
    model = _model_in(level)
    known = list(model.model_fields) if model else []
    message = f"unknown key, known here are {', '.join(known)}"
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return Problem(place, message, f"did you mean `{near[0]}`?")
    homes = sorted({home for home, name in _sections(root) if name == key})
    return Problem(place, message, f"`{key}` stands under `{homes[0]}`" if homes else "")


def _remedy(value: object, annotation: Any) -> str:
    # YAML reads `on`, `1234` and `1.5` as something else than text.
    if isinstance(value, bool | int | float) and _takes_text(annotation):
        return f'write "{shown(value)}" in quotes to make it text'
    if isinstance(value, str) and _is_list(annotation):
        return f"write it as a list: [{value}]"
    return ""


# --- types ------------------------------------------------------------------------------------


def words(annotation: Any) -> str:
    """Return what a type allows, to go on from "expected"."""
    stated = next((m.text for m in _metadata(annotation) if isinstance(m, Allowed)), None)
    if stated is not None:
        return stated
    bare = _bare(annotation)
    if get_origin(bare) in (Union, UnionType):
        return " or ".join(words(member) for member in get_args(bare))
    if get_origin(bare) is Literal:
        return " or ".join(str(value) for value in get_args(bare))
    if bare is NoneType:
        return "null"
    if _is_model(bare):
        return f"a mapping with the keys {', '.join(bare.model_fields)}"
    return {bool: "true or false", str: "text", int: "a whole number"}.get(bare, "another value")


def _walk(
    loc: Sequence[str | int], model: type[BaseModel], raw: object
) -> tuple[list[str | int], Any, object]:
    """Follow an error's location: its place in the file, its type, its value there.

    Steps that are no place in the file (names of union members) are passed over.
    """
    parts: list[str | int] = []
    annotation: Any = model
    value = raw
    for key in loc:
        inner = _inner(annotation, key)
        if inner is None:
            continue
        annotation = inner
        if isinstance(value, str):
            continue  # an entry written as the text of its main key has no places of its own
        parts.append(key)
        if isinstance(value, dict):
            value = value.get(key, _MISSING)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            value = _MISSING
    return parts, annotation, value


def _inner(annotation: Any, key: str | int) -> Any:
    """Return the type at a key or index of a type, or None if it has no such place."""
    bare = _bare(annotation)
    if get_origin(bare) in (Union, UnionType):
        found = (_inner(member, key) for member in get_args(bare))
        return next((inner for inner in found if inner is not None), None)
    if isinstance(key, int):
        return get_args(bare)[0] if get_origin(bare) is tuple else None
    if _is_model(bare) and key in bare.model_fields:
        field = bare.model_fields[key]
        return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return None


def _field(parts: Sequence[str | int], model: type[BaseModel]) -> FieldInfo | None:
    """Return the field at a place, or None if an item of a list stands there."""
    annotation: Any = model
    for key in parts[:-1]:
        annotation = _inner(annotation, key)
    owner = _model_in(annotation)
    return owner.model_fields.get(str(parts[-1])) if owner and parts else None


def _sections(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    """Yield (place, key) for every key below the top level."""
    for name, field in model.model_fields.items():
        below = _model_in(field.annotation)
        if below is None:
            below = _model_in(_inner(field.annotation, 0))
        if below is not None:
            here = f"{place}.{name}" if place else name
            for key in below.model_fields:
                yield here, key
            yield from _sections(below, here)


def _metadata(annotation: Any) -> tuple[Any, ...]:
    return annotation.__metadata__ if get_origin(annotation) is Annotated else ()


def _bare(annotation: Any) -> Any:
    return annotation.__origin__ if get_origin(annotation) is Annotated else annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    bare = _bare(annotation)
    return bare if _is_model(bare) else None


def _is_list(annotation: Any) -> bool:
    return get_origin(_bare(annotation)) is tuple


def _takes_text(annotation: Any) -> bool:
    bare = _bare(annotation)
    if get_origin(bare) in (Union, UnionType):
        return any(_takes_text(member) for member in get_args(bare))
    return bare is str
