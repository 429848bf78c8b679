"""JSON text for table cells: lossless, valid JSON for every reader, equal text for equal values.

Decides how values that JSON lacks are written. Two kinds get through Python's `json` unnoticed
and would come back as something else or break other readers:

- NaN and infinities: written as `{"$float": "nan"}`, `"inf"`, `"-inf"`. A dict that really has
  the single key `$float` gets one more `$` in front (and so on), so nothing is ambiguous.
- Tuples, keys that are no strings, other types: refused, since they would come back changed.
  Whoever has such values encodes them first (`raypeft.harness.codec`).

Finite floats are written by `repr`, which gives the same bits back. The order of keys is kept.
"""

import json
import math

from raypeft.core.records import Json

FLOAT_TAG = "$float"

# Made once: `json.dumps` with settings makes an encoder for every value.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ASCII_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def dump_json(value: Json) -> str:
    """Return a value as JSON text.

    Raises:
        TypeError: If it, or a value inside, is no JSON value; with its place.
    """
    plain = _plain(value, "$")
    text = _ENCODER.encode(plain)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate: only its escape can be stored
        text = _ASCII_ENCODER.encode(plain)
    return text


def load_json(text: str) -> Json:
    """Return the value that `dump_json` wrote.

    Raises:
        ValueError: If the text is no JSON.
    """
    return json.loads(text, object_hook=_from_tagged if FLOAT_TAG in text else None)


def readable(value: Json) -> str | None:
    """Return a text for reading, with what UTF-8 cannot hold replaced; None if it is no text."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", errors="replace").decode("utf-8")


def _plain(value: Json, place: str) -> Json:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {FLOAT_TAG: repr(float(value))}
    if isinstance(value, list):
        return [_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} of {place} is no string; encode the value first")
        if len(value) == 1:
            ((key, item),) = value.items()
            if key.startswith("$") and "$" + key.lstrip("$") == FLOAT_TAG:
                return {"$" + key: _plain(item, f"{place}.{key}")}
        return {key: _plain(item, f"{place}.{key}") for key, item in value.items()}
    raise TypeError(f"{place} is a {type(value).__name__}, no JSON value; encode it first")


def _from_tagged(value: dict[str, Json]) -> Json:
    if len(value) != 1:
        return value
    ((key, item),) = value.items()
    if key == FLOAT_TAG:
        return float(item)
    if key.startswith("$$") and "$" + key.lstrip("$") == FLOAT_TAG:
        return {key[1:]: item}
    return value
