"""Known digests are pinned: a change of identity is a decision, and raises a version."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypeft.core.identity import (
    canonical,
    cell_key,
    cell_numerics,
    digest,
    freeze_key,
    request_set_digest,
    score_key,
)
from raypeft.core.records import (
    Adapter,
    Document,
    EngineSpec,
    EvaluationSettings,
    Json,
    Request,
    Subject,
)

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

REQUESTS = (
    Request(0, 0, 0, 0, "loglikelihood", ("Q: é\n", " yes")),
    Request(1, 0, 1, 0, "loglikelihood", ("Q: é\n", " no")),
    Request(2, 1, 0, 0, "generate_until", ("Say", {"until": ["\n"], "temperature": 0.7})),
)
DOCUMENTS = (Document(0, {"q": 1}, 0, "d0", "t0"), Document(1, {"q": 2}, "x", "d1", "t1"))


def request_digest(**changes: Json) -> str:
    values: dict[str, Json] = {
        "task": "toy",
        "version": "1.0",
        "output_type": "multiple_choice",
        "requests": REQUESTS,
        "documents": DOCUMENTS,
        "tokenizer_digest": "",
    }
    return request_set_digest(**(values | changes))


def key_of_cell(**changes: Json) -> str:
    values: dict[str, Json] = {
        "base_digest": "b",
        "adapter_digest": "a",
        "request_set": "r",
        "numerics": {"engine": "hf", "dtype": "float32"},
    }
    return cell_key(**(values | changes))


def key_of_freeze(**changes: Json) -> str:
    values: dict[str, Json] = {
        "entry": "toy",
        "settings": EvaluationSettings(),
        "tokenizer_digest": "",
        "include_digest": "",
        "lm_eval_version": "0.4.13",
    }
    return freeze_key(**(values | changes))


def key_of_score(**changes: Json) -> str:
    values: dict[str, Json] = {"cell": "c", "lm_eval_version": "0.4.13", "bootstrap_iters": 100}
    return score_key(**(values | changes))


@pytest.mark.parametrize(
    ("found", "pinned"),
    [
        (digest("kind", 1, {"a": [1, None, 0.1]}), "c6739b111cc1c0d4578a3ec0eb7e9a84"),
        (request_digest(), "68efe7a7cbcff225a6d781e5bcea3898"),
        (key_of_cell(), "3fd5aa7e0e10b3da273271ff5c2c2b0d"),
        (key_of_freeze(), "e15a9d82addc07225b57fcdd5f28a334"),
        (key_of_score(), "3879c5381950a3fc56fb5f5f4fcbb83e"),
    ],
    ids=["digest", "request set", "cell", "freeze", "score"],
)
def test_known_digests_stay(found: str, pinned: str) -> None:
    assert found == pinned


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "other"},
        {"version": "1.1"},
        {"output_type": "generate_until"},
        {"tokenizer_digest": "x"},
        {"requests": REQUESTS[::-1]},
        {"requests": REQUESTS[:2]},
        {"requests": (*REQUESTS[:2], replace(REQUESTS[2], repeat=1))},
        {"requests": (*REQUESTS[:2], replace(REQUESTS[2], arguments=("Say", {"until": []})))},
        {"requests": (replace(REQUESTS[0], arguments=("Q: é\n y", "es")), *REQUESTS[1:])},
        {"documents": DOCUMENTS[:1]},
        {"documents": (DOCUMENTS[0], replace(DOCUMENTS[1], doc_hash="x"))},
        {"documents": (DOCUMENTS[0], replace(DOCUMENTS[1], target_hash="x"))},
    ],
)
def test_whatever_can_change_a_score_changes_the_request_sets_digest(
    changes: dict[str, Json],
) -> None:
    assert request_digest(**changes) != request_digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"base_digest": "x"},
        {"adapter_digest": None},
        {"adapter_digest": "x"},
        {"request_set": "x"},
        {"numerics": {"engine": "hf", "dtype": "bfloat16"}},
        {"sampling_seed": 0},
    ],
)
def test_whatever_can_change_an_answer_changes_the_cells_key(changes: dict[str, Json]) -> None:
    assert key_of_cell(**changes) != key_of_cell()


def test_an_engine_opens_and_attaches_what_a_baseline_is_answered_through() -> None:
    zero = Adapter(name="b@zero", path="here", digest="d", expects_effect=False)
    through = Subject(id="b@zero", base="b", again=True, through=zero)
    assert through.is_baseline
    assert through.attached == through.opened == zero
    moved = through.opening(replace(zero, path="there"))
    assert moved == replace(through, through=replace(zero, path="there"))


def test_a_baseline_that_is_answered_again_has_answers_of_its_own() -> None:
    engine = EngineSpec(kind="hf", base="b", base_digest="b", dtype="float32")
    once, again = Subject(id="b", base="b"), Subject(id="b@again", base="b", again=True)
    assert cell_numerics(engine, again) == cell_numerics(engine, once) | {"again": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"entry": "x"},
        {"settings": EvaluationSettings(num_fewshot=0)},
        {"settings": EvaluationSettings(limit=1)},
        {"tokenizer_digest": "x"},
        {"include_digest": "x"},
        {"lm_eval_version": "x"},
    ],
)
def test_whatever_can_change_a_request_set_changes_the_freeze_key(changes: dict[str, Json]) -> None:
    assert key_of_freeze(**changes) != key_of_freeze()


@pytest.mark.parametrize(
    "changes",
    [{"cell": "x"}, {"lm_eval_version": "x"}, {"bootstrap_iters": 1}, {"scoring": "x"}],
)
def test_whatever_can_change_a_result_changes_the_score_key(changes: dict[str, Json]) -> None:
    assert key_of_score(**changes) != key_of_score()


@RELAXED
@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans(), min_size=2))
def test_the_order_of_keys_does_not_matter(value: dict[str, Json]) -> None:
    turned = dict(reversed(list(value.items())))
    assert canonical(turned) == canonical(value)
    assert digest("a", 1, turned) == digest("a", 1, value)


def test_kind_and_version_separate_equal_values() -> None:
    assert len({digest("a", 1, 0), digest("b", 1, 0), digest("a", 2, 0)}) == 3


def test_what_is_no_json_value_has_no_digest() -> None:
    with pytest.raises(TypeError):
        digest("a", 1, b"bytes")
