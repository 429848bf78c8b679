import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypeft.core.records import Json
from raypeft.errors import StoreError
from raypeft.store.sealed import seal, unseal
from raypeft.store.tables import CorruptError
from tests.store.examples import JSON_VALUES

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DATA = seal("memo", 1, {"key": "a", "value": [1, 2]})


@RELAXED
@given(JSON_VALUES)
def test_a_value_comes_back_equal(value: Json) -> None:
    assert repr(unseal(seal("memo", 3, value), "memo", 3, "place")) == repr(value)


@RELAXED
@given(st.integers(0, len(DATA) - 1))
def test_a_file_cut_off_anywhere_is_noticed(length: int) -> None:
    with pytest.raises(CorruptError, match="place"):
        unseal(DATA[:length], "memo", 1, "place")


def test_a_changed_content_is_noticed() -> None:
    with pytest.raises(CorruptError, match="not what was written"):
        unseal(DATA.replace(b"[1,2]", b"[1,3]"), "memo", 1, "place")


def test_another_version_is_refused_with_both_numbers() -> None:
    with pytest.raises(StoreError, match="memo of version 1; this raypeft reads memo of 2"):
        unseal(DATA, "memo", 2, "place")
