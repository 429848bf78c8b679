"""Shared contexts against lm-eval's own model: the same within rounding, or not shared at all."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raypeft.core.records import (
    Answer,
    EngineSpec,
    Json,
    RequestSet,
    RequestType,
    Shard,
    Subject,
    SubjectAnswers,
)
from raypeft.core.routing import Lane
from raypeft.engines import hf_shared, sharing_check, structure_copy, tree_masks
from raypeft.engines.adapters import read_adapter
from raypeft.engines.hf import HFEngine
from raypeft.engines.hf_batches import Pair, to_array
from raypeft.engines.hf_shared import RowLimit, Shared, run_packed
from raypeft.engines.packing import Packing, Row, pack
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


def few_shot_calls() -> list[tuple[RequestType, tuple[Json, ...]]]:
    """Few-shot choices and letters, whose shots are the same for all documents."""
    shots = "".join(f"Question: what is {n} plus {n}? Answer: it is {2 * n}.\n" for n in range(3))
    calls: list[tuple[RequestType, tuple[Json, ...]]] = []
    for number in range(6):
        context = f"{shots}Question: {'so ' * number}what is {number}? Answer:"
        choices = (" red", " the green house", " the green tree", " B", " A")
        calls += [("loglikelihood", (context, choice)) for choice in (*choices, choices[1])]
    return calls


REQUESTS = request_set([*mixed_calls(), *few_shot_calls()], task="shared")
SHOTS = request_set(few_shot_calls(), task="shots")
"""Requests that all begin alike, so that their beginning is computed once."""


def engine_of(base: Path, **settings: object) -> HFEngine:
    spec = EngineSpec(kind="hf", base=str(base), base_digest="0", batch_size=4, sharing=True)
    return HFEngine(replace(spec, **settings))  # type: ignore[arg-type]


def subject_of(folder: Path) -> Subject:
    adapter = read_adapter(str(folder), name=folder.name)
    return Subject(id=f"base/{folder.name}", base="base", adapter=adapter)


def answered(
    engine: HFEngine,
    subject: Subject,
    index: int = 0,
    count: int = 1,
    requests: RequestSet = REQUESTS,
) -> SubjectAnswers:
    (one,) = engine.answer(Shard(requests, index, count), [subject])
    assert one.failure is None, one.failure
    return one


def assert_close(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """Same requests, texts and greedy flags; log-likelihoods within rounding, same best choice."""
    assert [a.index for a in found] == [a.index for a in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.text, ours.is_greedy) == (theirs.text, theirs.is_greedy)
        if theirs.logprob is not None:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=NATS)
    for choices in _choices(REQUESTS if len(found) == len(REQUESTS.requests) else SHOTS):
        assert _best(found, choices) == _best(expected, choices)


def _choices(requests: RequestSet) -> list[list[int]]:
    by_context: dict[object, list[int]] = {}
    for request in requests.requests:
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
        plain = reference(base, adapter, batch_size=4)
        for requests in (REQUESTS, SHOTS):
            found = answered(engine, subject, requests=requests)
            assert found.path.startswith("shared")
            assert_close(found.answers, reference_answers(plain, requests))


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


@pytest.fixture
def window_of_long_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base whose attention window is reached past by the longest requests and no made-up text."""
    monkeypatch.setattr(sharing_check, "_LONGEST_MADE_UP", 8)
    return make_base(tmp_path / "base", "mistral", sliding_window=90)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_window_that_only_the_longest_rows_reach_past_is_checked_on_them(
    window_of_long_rows: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    def no_window(depths: torch.Tensor, prefix_tokens: int) -> torch.Tensor:
        num_rows, length = depths.shape
        return depths.new_zeros(num_rows, length, prefix_tokens + length)

    monkeypatch.setattr(tree_masks, "_distance", no_window)
    found = answered(engine_of(window_of_long_rows, dtype=dtype), BASELINE)
    assert found.path.startswith("plain: packed and plain rows differ by")
    assert "rows of this task" in found.path
    plain = reference(window_of_long_rows, None, batch_size=4, dtype=dtype)
    assert found.answers == reference_answers(plain, REQUESTS)


def test_texts_that_reach_past_a_long_window_share_where_it_is_right(
    window_of_long_rows: Path,
) -> None:
    found = answered(engine_of(window_of_long_rows), BASELINE)
    assert found.path.startswith("shared context")
    expected = reference_answers(reference(window_of_long_rows, None, batch_size=4), REQUESTS)
    assert_close(found.answers, expected)


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
    shared, plain = (
        engine_of(tiny_base, sharing=sharing).answer(Shard(SHOTS), [BASELINE])[0].tokens
        for sharing in (True, False)
    )
    assert shared * 3 < plain


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_the_token_budget_moves_answers_by_rounding_only(
    engine: HFEngine, tiny_base: Path, batch_tokens: int
) -> None:
    found = answered(engine_of(tiny_base, batch_tokens=batch_tokens), BASELINE)
    assert_close(found.answers, answered(engine, BASELINE).answers)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_neox"]
)
def test_sound_models_share_in_half_precision_and_agree_within_its_rounding(
    tmp_path: Path, name: str, dtype: str
) -> None:
    base = make_base(tmp_path / "base", name)
    folder = make_adapter(base, tmp_path / "lora", "lora_r8_all_linear")
    engine = engine_of(base, dtype=dtype)
    for adapter, subject in ((None, BASELINE), (folder, subject_of(folder))):
        plain = reference(base, adapter, batch_size=4, dtype=dtype)
        for requests in (REQUESTS, SHOTS):
            found = answered(engine, subject, requests=requests)
            assert found.path.startswith("shared context")
            for ours, theirs in zip(found.answers, reference_answers(plain, requests), strict=True):
                if theirs.logprob is not None:
                    assert ours.logprob == pytest.approx(theirs.logprob, abs=0.2)


def test_a_16_bit_model_without_a_float32_copy_takes_the_plain_path_and_says_why(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structure_copy, "MOST_PARAMETERS", 10)
    found = answered(engine_of(tiny_base, dtype="bfloat16"), BASELINE)
    assert found.path.startswith("plain: a bfloat16 model, whose structure cannot be checked")
    assert "more than 10" in found.path
    plain = reference(tiny_base, None, batch_size=4, dtype="bfloat16")
    assert found.answers == reference_answers(plain, REQUESTS)


@pytest.fixture
def leaky_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that lets branches see each other: what an unknown architecture might do."""
    real = tree_masks._visible

    def leaky(branches: torch.Tensor, *rest: Any) -> torch.Tensor:
        return real(torch.zeros_like(branches), *rest)

    monkeypatch.setattr(tree_masks, "_visible", leaky)


@pytest.mark.usefixtures("leaky_mask")
def test_tokens_suppressed_by_huge_logits_do_not_hide_a_wrong_mask(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "phi")
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.bias"] = torch.zeros(400)
    tensors["lm_head.bias"][390:] = -1e9
    save_file(tensors, file, metadata={"format": "pt"})
    assert "differ by" in answered(engine_of(base), BASELINE).path


@pytest.mark.usefixtures("leaky_mask")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_whose_packed_rows_are_wrong_is_found_out(tiny_base: Path, dtype: str) -> None:
    found = answered(engine_of(tiny_base, dtype=dtype), BASELINE)
    assert "differ by" in found.path
    plain = reference(tiny_base, None, batch_size=4, dtype=dtype)
    assert found.answers == reference_answers(plain, REQUESTS)


def test_a_batch_that_does_not_fit_into_memory_is_run_in_halves(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = [[7, 8, 9, n] for n in range(8)]
    pairs = [Pair(to_array(c), to_array([n, 3])) for c in contexts for n in (1, 2)]
    packed = pack(pairs, Packing(max_length=64, batch_tokens=1000))
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
        assert not found.unfit
        assert found.answers.keys() == expected.answers.keys()
        for position, (logprob, is_greedy) in expected.answers.items():
            assert found.answers[position][0] == pytest.approx(logprob, abs=NATS)
            assert found.answers[position][1] == is_greedy
    # The second time it is known what fits.
    assert [size for size in sizes if size > 3] == [8, 4]


def num_pairs() -> int:
    return sum(request.request_type == "loglikelihood" for request in REQUESTS.requests)


def small_device(monkeypatch: pytest.MonkeyPatch, name: str, is_too_much: Any) -> None:
    """Let one function run out of memory for some of its arguments."""
    owner: Any = Shared if name == "with_prefix" else hf_shared
    real = getattr(owner, name)

    def limited(*args: Any) -> Any:
        if is_too_much(*args):
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(*args)

    monkeypatch.setattr(owner, name, limited)


def test_a_single_row_that_does_not_fit_takes_the_plain_path(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_base)
    expected = answered(engine, BASELINE)

    def holds_the_letters(shared: Shared, rows: Sequence[Row]) -> bool:
        return min(len(row.tokens) for row in rows) < 10

    small_device(monkeypatch, "run_rows", holds_the_letters)
    found = answered(engine, BASELINE)
    assert found.path.startswith("shared context: ")
    assert f"3 of {num_pairs()} plain: memory ran out" in found.path
    assert_close(found.answers, expected.answers)
    parts = [answered(engine, BASELINE, index, 5).answers for index in range(5)]
    merged = sorted((a for part in parts for a in part), key=lambda a: a.index)
    assert_close(merged, expected.answers)


def test_a_prefix_that_does_not_fit_leaves_its_rows_to_the_plain_path(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_base)
    expected = answered(engine, BASELINE, requests=SHOTS)
    small_device(monkeypatch, "with_prefix", lambda shared, tokens: True)
    found = answered(engine, BASELINE, requests=SHOTS)
    assert found.path == "shared context: 36 of 36 plain: memory ran out for their rows"
    assert_close(found.answers, expected.answers)


def test_memory_that_runs_out_in_the_check_leaves_the_shards_as_they_are(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, short = engine_of(tiny_base), engine_of(tiny_base)
    small_device(monkeypatch, "with_prefix", lambda shared, tokens: True)
    found = answered(short, BASELINE, 1, 3, SHOTS)
    monkeypatch.undo()
    assert found.path == "plain: memory ran out on rows of this task"
    # A slot with more memory answers the same requests in this shard.
    expected = answered(sound, BASELINE, 1, 3, SHOTS).answers
    assert [answer.index for answer in found.answers] == [answer.index for answer in expected]
    for ours, theirs in zip(found.answers, expected, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=NATS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_that_runs_out_while_a_slot_starts_leaves_the_shards_as_they_are(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    def no_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    expected = answered(engine_of(tiny_base, dtype=dtype), BASELINE, 1, 3, SHOTS)
    if dtype == "float32":
        small_device(monkeypatch, "run_rows", lambda shared, rows: True)
    else:
        monkeypatch.setattr(sharing_check, "structure_copy", no_memory)
    found = answered(engine_of(tiny_base, dtype=dtype), BASELINE, 1, 3, SHOTS)
    assert found.path.startswith("plain: memory ran out")
    assert [a.index for a in found.answers] == [a.index for a in expected.answers]


def test_the_path_counts_what_is_longer_than_the_model(engine: HFEngine) -> None:
    assert answered(engine, BASELINE).path == (
        f"shared context: 1 of {num_pairs()} plain: longer than the model"
    )


@pytest.mark.parametrize("name", ["bloom", "falcon"])
def test_alibi_is_named_as_the_reason(tmp_path: Path, name: str) -> None:
    path = answered(engine_of(make_base(tmp_path / "base", name)), BASELINE).path
    assert path.startswith(f"plain: models of type {name} weigh tokens by their distance")


def test_the_check_of_a_request_set_runs_few_rows_and_once(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_base)
    checked: list[int] = []
    real = sharing_check._plain_sum

    def counting(*args: Any) -> tuple[float, float]:
        checked.append(len(args[3].tokens))
        return real(*args)

    monkeypatch.setattr(sharing_check, "_plain_sum", counting)
    for index in range(3):
        answered(engine, BASELINE, index, 3)
    assert 0 < len(checked) <= 8
