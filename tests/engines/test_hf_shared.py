"""Shared contexts against lm-eval's own model: the same within rounding, or not shared at all."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raypeft.core.records import Answer, EngineSpec, RequestSet, Shard, Subject, SubjectAnswers
from raypeft.core.routing import Lane
from raypeft.engines import hf_shared
from raypeft.engines.adapters import read_adapter
from raypeft.engines.hf import HFEngine
from raypeft.engines.hf_batches import Pair, to_array
from raypeft.engines.hf_shared import RowLimit, Shared, run_packed
from raypeft.engines.packing import pack
from tests.engines.samples import mixed_calls, request_set
from tests.engines.zoo import (
    LANES,
    MUTATING,
    ZOO,
    make_adapter,
    make_base,
    reference,
    reference_answers,
)

pytestmark = pytest.mark.torch

BASELINE = Subject(id="base", base="base")
NATS = 1e-4
"""What raypeft promises in float32; the differences seen are about 4e-6."""

SHARED = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi"),
    *("opt", "mixtral"),
)
PLAIN = ("mamba", "bloom", "falcon", "recurrent_gemma", "gpt_neo")
READING_WHOLE_ROWS = (
    *("prompt_tuning", "prefix_tuning", "p_tuning", "cpt", "cartridge"),
    *("adaption_prompt", "shadow", "activated_lora"),
)


def few_shot_calls() -> RequestSet:
    """Few-shot choices, letters and a common beginning, beside what the other tests ask."""
    shots = "".join(f"Question: what is {n} plus {n}? Answer: it is {2 * n}.\n" for n in range(5))
    calls = mixed_calls()
    for number in range(6):
        context = f"{shots}Question: {'really ' * number}what is {number}? Answer:"
        choices = (" red", " the green house", " the green tree", " B", " A")
        calls += [("loglikelihood", (context, choice)) for choice in (*choices, choices[1])]
    return request_set(calls, task="shared")


REQUESTS = few_shot_calls()


def engine_of(base: Path, **settings: object) -> HFEngine:
    spec = EngineSpec(kind="hf", base=str(base), base_digest="0", batch_size=4, sharing=True)
    return HFEngine(replace(spec, **settings))  # type: ignore[arg-type]


def subject_of(folder: Path) -> Subject:
    adapter = read_adapter(str(folder), name=folder.name)
    return Subject(id=f"base/{folder.name}", base="base", adapter=adapter)


def answered(engine: HFEngine, subject: Subject, index: int = 0, count: int = 1) -> SubjectAnswers:
    (one,) = engine.answer(Shard(REQUESTS, index, count), [subject])
    assert one.failure is None, one.failure
    return one


def assert_close(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """Same requests, texts and greedy flags; log-likelihoods within rounding, same best choice."""
    assert [a.index for a in found] == [a.index for a in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.text, ours.is_greedy) == (theirs.text, theirs.is_greedy)
        if theirs.logprob is not None:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=NATS)
    for choices in _choices():
        assert _best(found, choices) == _best(expected, choices)


def _choices() -> list[list[int]]:
    by_context: dict[object, list[int]] = {}
    for request in REQUESTS.requests:
        if request.request_type == "loglikelihood":
            by_context.setdefault(request.arguments[0], []).append(request.index)
    return list(by_context.values())


def _best(answers: Sequence[Answer], indices: Sequence[int]) -> int:
    values = [answers[index].logprob or 0.0 for index in indices]
    return values.index(max(values))


@pytest.fixture(scope="module")
def zoo(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("zoo")
    return functools.cache(lambda name: make_adapter(tiny_base, folder / name, name))


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> HFEngine:
    return engine_of(tiny_base)


@pytest.mark.parametrize("name", SHARED)
def test_architectures_that_share_agree_with_lm_eval_with_and_without_lora(
    tmp_path: Path, name: str
) -> None:
    base = make_base(tmp_path / "base", name)
    folder = make_adapter(base, tmp_path / "lora", "lora_r8_all_linear")
    engine = engine_of(base)
    for adapter, subject in ((None, BASELINE), (folder, subject_of(folder))):
        found = answered(engine, subject)
        assert found.path.startswith("shared")
        expected = reference_answers(reference(base, adapter, batch_size=4), REQUESTS)
        assert_close(found.answers, expected)


@pytest.mark.parametrize("name", PLAIN)
def test_architectures_that_cannot_share_say_why_and_equal_lm_eval_bit_for_bit(
    tmp_path: Path, name: str
) -> None:
    base = make_base(tmp_path / "base", name)
    found = answered(engine_of(base), BASELINE)
    assert found.path.startswith("plain: ")
    assert len(found.path) > len("plain: ")
    expected = reference_answers(reference(base, None, batch_size=4), REQUESTS)
    assert found.answers == expected


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_depend_on_the_length_of_a_row_are_not_shared(
    tmp_path: Path, kind: str
) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, **factors}
    rope |= {"original_max_position_embeddings": 64}
    base = make_base(tmp_path / "base", "llama", rope_parameters=rope)
    assert kind in answered(engine_of(base), BASELINE).path


def test_texts_that_reach_past_a_window_too_long_to_check_take_the_plain_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_shared, "CHECKED_WINDOW", 8)
    base = make_base(tmp_path / "base", "mistral")  # its window is 16
    found = answered(engine_of(base), BASELINE)
    assert found.path.startswith("shared context")
    assert "plain for requests longer" in found.path
    assert_close(found.answers, reference_answers(reference(base, None, batch_size=4), REQUESTS))


@pytest.mark.parametrize("name", ZOO)
def test_every_adapter_type_agrees_with_a_fresh_load(
    engine: HFEngine, tiny_base: Path, zoo: Callable[[str], Path], name: str
) -> None:
    found = answered(engine, subject_of(zoo(name)))
    expected = reference_answers(reference(tiny_base, zoo(name), batch_size=4), REQUESTS)
    lane = Lane.ISOLATED if name in MUTATING else LANES.get(name, Lane.ONE_TYPE)
    if name in READING_WHOLE_ROWS:
        assert found.path.startswith(f"plain, lane {lane}: ")
        assert found.answers == expected
    else:
        assert found.path.startswith(f"shared context, lane {lane}")
        assert_close(found.answers, expected)


@pytest.mark.parametrize("count", [3, 7, 60])
def test_answers_do_not_depend_on_the_number_of_shards(engine: HFEngine, count: int) -> None:
    whole = answered(engine, BASELINE).answers
    parts = [answered(engine, BASELINE, index, count).answers for index in reversed(range(count))]
    assert sorted((a for part in parts for a in part), key=lambda a: a.index) == list(whole)


def test_fewer_tokens_go_through_the_model_than_without_sharing(tiny_base: Path) -> None:
    calls = [call for call in few_shot_calls().requests if call.request_type == "loglikelihood"]
    requests = request_set([("loglikelihood", call.arguments) for call in calls], task="pairs")
    shared, plain = (
        engine_of(tiny_base, sharing=sharing).answer(Shard(requests), [BASELINE])[0].tokens
        for sharing in (True, False)
    )
    assert shared * 3 < plain


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_the_token_budget_moves_answers_by_rounding_only(
    engine: HFEngine, tiny_base: Path, batch_tokens: int
) -> None:
    found = answered(engine_of(tiny_base, batch_tokens=batch_tokens), BASELINE)
    assert_close(found.answers, answered(engine, BASELINE).answers)


def test_in_half_precision_what_is_not_within_the_models_own_noise_is_not_shared(
    tiny_base: Path,
) -> None:
    found = answered(engine_of(tiny_base, dtype="bfloat16"), BASELINE)
    plain = answered(engine_of(tiny_base, dtype="bfloat16", sharing=False), BASELINE)
    if found.path.startswith("plain"):
        assert found.answers == plain.answers
    for ours, theirs in zip(found.answers, plain.answers, strict=True):
        if theirs.logprob is not None:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=0.2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_whose_packed_rows_are_wrong_is_found_out(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    # A mask that lets branches see each other: what an unknown architecture might do.
    real = hf_shared._tree

    def leaky(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        branches, *rest = args
        return real(torch.zeros_like(branches), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(hf_shared, "_tree", leaky)
    found = answered(engine_of(tiny_base, dtype=dtype), BASELINE)
    assert "differ by" in found.path
    plain = reference(tiny_base, None, batch_size=4, dtype=dtype)
    assert found.answers == reference_answers(plain, REQUESTS)


def test_a_batch_that_does_not_fit_into_memory_is_run_in_halves(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = [[7, 8, 9, n] for n in range(8)]
    pairs = [Pair(to_array(c), to_array([n, 3])) for c in contexts for n in (1, 2)]
    packed = pack(pairs, max_length=64, batch_tokens=1000)
    shared = Shared(engine._base, torch.device("cpu"), torch.float32)
    expected = run_packed(shared, packed, range(len(packed.rows)))
    real, sizes = hf_shared.run_rows, []

    def small_device(shared: Shared, rows: Sequence[object]) -> object:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(shared, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(hf_shared, "run_rows", small_device)
    limit = RowLimit()
    for _ in range(2):
        found = run_packed(shared, packed, range(len(packed.rows)), limit)
        assert found.keys() == expected.keys()
        for position, (logprob, is_greedy) in expected.items():
            assert found[position][0] == pytest.approx(logprob, abs=NATS)
            assert found[position][1] == is_greedy
    # The second time it is known what fits.
    assert [size for size in sizes if size > 3] == [8, 4]
