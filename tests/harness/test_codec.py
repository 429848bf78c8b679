"""The typed JSON form of documents is lossless, and refuses what it cannot keep."""

import datetime
import decimal
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypeft.harness.codec import TAG, UnfreezableError, freeze_json, thaw_json

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | st.just(datetime.UTC))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
)
keys = st.text() | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.just(TAG), inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equality that also compares types, order of keys, NaN and the sign of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return repr(left) == repr(right)
    return bool(left == right)


@given(values)
def test_a_value_comes_back_equal_with_equal_types_through_json_text(value: Any) -> None:
    text = json.dumps(freeze_json(value), allow_nan=False)
    assert same(thaw_json(json.loads(text)), value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_plain_json_stands_for_itself(value: Any) -> None:
    assert freeze_json(value) == value


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.float64("nan"),
        np.int64(-3),
        np.bool_(True),
        np.str_("ü"),
        np.array([[1.5, 2.5], [3.0, float("inf")]], dtype=np.float32),
        np.array([], dtype=np.int8),
    ],
)
def test_numpy_values_keep_dtype_shape_and_bits(value: Any) -> None:
    thawed = thaw_json(json.loads(json.dumps(freeze_json(value))))
    assert type(thawed) is type(value)
    assert (thawed.dtype, thawed.shape) == (value.dtype, value.shape)
    assert thawed.tobytes() == value.tobytes()


@pytest.mark.parametrize(
    ("value", "place", "type_name"),
    [
        ({"a": [1, {"b": {1, 2}}]}, "$.a[1].b", "builtins.set"),
        ((object(),), "$[0]", "builtins.object"),
        ([1 + 2j], "$[0]", "builtins.complex"),
        ({frozenset(): 1}, "key frozenset() of $", "builtins.frozenset"),
        ({"x": np.array([object()])}, "$.x", "numpy.ndarray"),
        ({"d": decimal.Context()}, "$.d", "decimal.Context"),
    ],
)
def test_what_has_no_lossless_form_is_refused_with_its_place(
    value: Any, place: str, type_name: str
) -> None:
    with pytest.raises(UnfreezableError) as caught:
        freeze_json(value)
    assert (caught.value.place, caught.value.type_name) == (place, type_name)
    assert place in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown"):
        thaw_json({TAG: "matrix", "value": []})
