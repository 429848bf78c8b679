"""A typed, lossless JSON form for documents, targets and arguments.

Decides how a Python value that JSON cannot hold (a tuple, bytes, a key that is no string, a date,
NaN, a numpy scalar or array) is written, so that `thaw_json(freeze_json(x)) == x` with equal
types. What has no such form is refused with its place in the value: a document that changed
silently would be scored as another document. The order of keys is kept, since lm-eval's hash of
a document depends on it; whoever stores the JSON must not sort keys.
"""

import base64
import datetime
import decimal
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from raypeft.core.records import Json
from raypeft.errors import RaypeftError

TAG = "$type"
"""A dict with this key stands for a value that JSON cannot hold."""

_NUMPY_KINDS = "biufSU"
"""Kinds of numpy values that are kept: bool, int, unsigned, float, bytes and str."""


class UnfreezableError(RaypeftError):
    """A value has no lossless JSON form.

    Args:
        place: Where it stands, for instance `$.images[0]`.
        type_name: Its type.
    """

    def __init__(self, place: str, type_name: str) -> None:
        super().__init__(place, type_name)
        self.place = place
        self.type_name = type_name

    def __str__(self) -> str:
        return (
            f"{self.place} is a {self.type_name}, which cannot be frozen; allowed are None, bool, "
            "int, float, str, bytes, list, tuple, dict, date and time, Decimal, and numpy values"
        )


def freeze_json(value: Any, place: str = "$") -> Json:
    """Return the JSON form of a value.

    None, bool, int, finite float, str, list and dict with str keys stand for themselves; anything
    else becomes `{"$type": ..., ...}`.

    Args:
        value: The value.
        place: What an error calls it.

    Raises:
        UnfreezableError: If the value, or one inside it, has no lossless form.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
    if kind is list:
        return [freeze_json(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if kind is dict:
        return _freeze_dict(value, place)
    if kind is tuple:
        items = [freeze_json(item, f"{place}[{i}]") for i, item in enumerate(value)]
        return {TAG: "tuple", "value": items}
    if kind is bytes:
        return {TAG: "bytes", "value": base64.b64encode(value).decode("ascii")}
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in _NUMPY_KINDS:
        return _freeze_numpy(value)
    if kind in _BY_TEXT:
        name, to_text, _ = _BY_TEXT[kind]
        return {TAG: name, "value": to_text(value)}
    raise UnfreezableError(place, f"{kind.__module__}.{kind.__qualname__}")


def thaw_json(value: Json) -> Any:
    """Return the value that `freeze_json` froze.

    Raises:
        ValueError: If a tag is unknown.
    """
    if type(value) is list:
        return [thaw_json(item) for item in value]
    if type(value) is not dict:
        return value
    if TAG not in value:
        return {key: thaw_json(item) for key, item in value.items()}
    tag, inner = value[TAG], value["value"]
    if tag == "tuple":
        return tuple(thaw_json(item) for item in inner)
    if tag == "dict":
        return {thaw_json(key): thaw_json(item) for key, item in inner}
    if tag == "float":
        return float(inner)
    if tag == "bytes":
        return base64.b64decode(inner)
    if tag in ("numpy", "ndarray"):
        return _thaw_numpy(value)
    if tag in _FROM_TEXT:
        return _FROM_TEXT[tag](inner)
    raise ValueError(f"unknown {TAG} {tag!r} in a frozen value; it was written by another version")


def _freeze_dict(value: dict[Any, Any], place: str) -> Json:
    if all(type(key) is str for key in value) and TAG not in value:
        return {key: freeze_json(item, f"{place}.{key}") for key, item in value.items()}
    pairs = [
        [freeze_json(key, f"key {key!r} of {place}"), freeze_json(item, f"{place}[{key!r}]")]
        for key, item in value.items()
    ]
    return {TAG: "dict", "value": pairs}


def _freeze_numpy(value: np.generic | np.ndarray[Any, Any]) -> Json:
    """Keep dtype, shape and bits: float32 printed as float64 would hash differently."""
    array = np.ascontiguousarray(value)
    return {
        TAG: "ndarray" if isinstance(value, np.ndarray) else "numpy",
        "dtype": value.dtype.str,
        # `ascontiguousarray` turns a scalar into one element: the shape is the value's own.
        "shape": list(value.shape),
        "value": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def _thaw_numpy(value: dict[str, Json]) -> Any:
    buffer = base64.b64decode(value["value"])
    array = np.frombuffer(buffer, dtype=np.dtype(value["dtype"])).reshape(value["shape"])
    return array.copy() if value[TAG] == "ndarray" else array[()]


def _timedelta_text(value: datetime.timedelta) -> str:
    return f"{value.days},{value.seconds},{value.microseconds}"


def _text_timedelta(text: str) -> datetime.timedelta:
    days, seconds, microseconds = (int(part) for part in text.split(","))
    return datetime.timedelta(days, seconds, microseconds)


_BY_TEXT: dict[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]] = {
    datetime.datetime: (
        "datetime",
        datetime.datetime.isoformat,
        datetime.datetime.fromisoformat,
    ),
    datetime.date: ("date", datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.time: ("time", datetime.time.isoformat, datetime.time.fromisoformat),
    datetime.timedelta: ("timedelta", _timedelta_text, _text_timedelta),
    decimal.Decimal: ("decimal", str, decimal.Decimal),
}

_FROM_TEXT = {name: from_text for name, _, from_text in _BY_TEXT.values()}
