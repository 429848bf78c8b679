import json
import math
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypeft.core.records import Json
from raypeft.store.jsontext import dump_json, load_json, readable
from tests.store.examples import JSON_VALUES

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@RELAXED
@given(JSON_VALUES)
def test_any_json_value_comes_back_with_every_bit(value: Json) -> None:
    # `repr` tells 1 from 1.0 and True, 0.0 from -0.0, and is equal for NaN.
    assert repr(load_json(dump_json(value))) == repr(value)


@RELAXED
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_finite_floats_keep_their_bits(value: float) -> None:
    assert struct.pack("d", load_json(dump_json(value))) == struct.pack("d", value)


@RELAXED
@given(JSON_VALUES)
def test_the_text_is_json_for_strict_readers_and_utf8(value: Json) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = dump_json(value)
    json.loads(text.encode("utf-8"), parse_constant=refuse)


def test_nan_and_infinities_have_a_documented_form() -> None:
    assert dump_json([math.nan, math.inf, -math.inf]) == (
        '[{"$float":"nan"},{"$float":"inf"},{"$float":"-inf"}]'
    )


def test_a_dict_that_looks_like_the_form_stays_a_dict() -> None:
    for value in ({"$float": "nan"}, {"$$float": 1}, {"$float": "nan", "a": 1}):
        assert load_json(dump_json(value)) == value


def test_the_order_of_keys_is_kept() -> None:
    assert dump_json({"b": 1, "a": 2}) == '{"b":1,"a":2}'


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [(1, 2)]}, r"\$\.a\[0\] is a tuple"),
        ({"a": {1: 2}}, r"key 1 of \$\.a is no string"),
        (b"x", r"\$ is a bytes"),
    ],
)
def test_what_would_come_back_changed_is_refused_with_its_place(value: Json, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        dump_json(value)


def test_readable_text_replaces_only_what_utf8_cannot_hold() -> None:
    assert readable("a\x00é\ud800") == "a\x00é?"
    assert readable(3) is None
