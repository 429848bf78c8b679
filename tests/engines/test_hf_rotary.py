"""Models whose positions depend on the rows they saw: answered alike whatever came before."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raypeft.core.records import EngineSpec, Json, RequestSet, RequestType, Shard, Subject
from raypeft.engines.adapters import read_adapter
from raypeft.engines.hf import HFEngine
from raypeft.engines.hf_rotary import changing_rotary, reset_rotary
from raypeft.engines.hf_snapshot import take_snapshot
from tests.engines.samples import request_set
from tests.engines.zoo import reference, reference_answers
from tests.support.tiny import tiny_llama, tiny_lora

pytestmark = pytest.mark.torch

ORIGINAL_TOKENS = 32
LONGEST_TOKENS = 128
BASELINE = Subject(id="base", base="base")
TYPES: dict[str, dict[str, Any]] = {
    "dynamic": {
        "max_position_embeddings": ORIGINAL_TOKENS,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    },
    "longrope": {
        "max_position_embeddings": LONGEST_TOKENS,
        "rope_parameters": {
            "rope_type": "longrope",
            "factor": 4.0,
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": ORIGINAL_TOKENS,
        },
    },
}
Calls = list[tuple[RequestType, tuple[Json, ...]]]
MakeEngine = Callable[[str], HFEngine]


def texts(repeats: int) -> Calls:
    generation: dict[str, Json] = {"until": ["\n"], "max_gen_toks": 4}
    return [
        ("loglikelihood", ("a red house " * repeats, " on a mountain")),
        ("loglikelihood_rolling", ("the cat sleeps " * repeats,)),
        ("generate_until", ("so say " * repeats, generation)),
    ]


SHORT, MEDIUM, LONG = (request_set(texts(repeats)) for repeats in (1, 6, 16))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rotary")
    return {kind: tiny_llama(root / kind, **settings) for kind, settings in TYPES.items()}


def engine_of(base: Path) -> HFEngine:
    spec = EngineSpec(
        kind="hf", base=str(base), base_digest="0", batch_size=2, max_length=LONGEST_TOKENS
    )
    return HFEngine(spec)


def answers(engine: HFEngine, requests: RequestSet, subject: Subject = BASELINE) -> tuple[Any, ...]:
    (found,) = engine.answer(Shard(requests), [subject])
    assert found.failure is None, found.failure
    return found.answers


@pytest.mark.parametrize("kind", TYPES)
def test_answers_do_not_depend_on_what_was_answered_before(
    bases: dict[str, Path], kind: str
) -> None:
    fresh = {id(one): answers(engine_of(bases[kind]), one) for one in (SHORT, MEDIUM, LONG)}

    engine = engine_of(bases[kind])

    for requests in (LONG, MEDIUM, SHORT, LONG, SHORT, MEDIUM):
        assert answers(engine, requests) == fresh[id(requests)]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("requests", [SHORT, MEDIUM, LONG])
def test_one_text_is_answered_as_by_lm_evals_own_model_freshly_loaded(
    bases: dict[str, Path], kind: str, requests: RequestSet
) -> None:
    engine = engine_of(bases[kind])
    answers(engine, LONG)

    for request in requests.requests:
        alone = request_set([(request.request_type, request.arguments)])
        model = reference(bases[kind], None, batch_size=2, max_length=LONGEST_TOKENS)
        assert answers(engine, alone) == reference_answers(model, alone)


@pytest.mark.parametrize("kind", TYPES)
def test_long_texts_are_no_reason_to_load_the_base_again(
    bases: dict[str, Path], kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_lora(bases[kind], tmp_path / "lora", scale=0.3)
    adapter = read_adapter(str(folder), name="lora")
    engine = engine_of(bases[kind])
    loaded = engine._base
    before = answers(engine, LONG)

    with caplog.at_level(logging.WARNING):
        adapted = answers(engine, LONG, Subject(id="a", base="base", adapter=adapter))
        merged = answers(
            engine, LONG, Subject(id="m", base="base", adapter=replace(adapter, merge=True))
        )
        after = answers(engine, LONG)

    assert adapted != before
    assert merged != before
    assert after == before
    assert engine._base is loaded
    assert "loaded again" not in caplog.text


@pytest.mark.parametrize("kind", TYPES)
def test_what_an_adapter_did_to_the_positions_is_still_seen(
    bases: dict[str, Path], kind: str
) -> None:
    engine = engine_of(bases[kind])
    model = engine._base
    (module,) = changing_rotary(model)
    before = take_snapshot(model)

    module.original_inv_freq.mul_(1.01)  # type: ignore[operator]
    reset_rotary(model)

    assert "inv_freq" in before.difference(take_snapshot(model))
    after = answers(engine, SHORT)
    engine.restore()
    assert engine._base is not model
    assert answers(engine, SHORT) != after


def test_most_models_have_nothing_to_forget(tiny_spec: EngineSpec) -> None:
    assert not list(changing_rotary(HFEngine(tiny_spec)._base))
