"""Answers of the hf engine: those of lm-eval, for every adapter type, and what failures become."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raypeft.core.records import (
    Answer,
    EngineSpec,
    Failure,
    FailureKind,
    RequestSet,
    Shard,
    Subject,
    SubjectAnswers,
)
from raypeft.engines.adapters import read_adapter
from raypeft.engines.hf import HFEngine
from raypeft.engines.hf_adapters import probe_rows
from raypeft.errors import CellError, EngineFatalError
from tests.engines.samples import mixed_calls, request_set
from tests.engines.zoo import (
    ARCHITECTURES,
    CLEAN,
    MUTATING,
    ZOO,
    make_adapter,
    make_base,
    reference,
    reference_answers,
)
from tests.support.tiny import tiny_llama, tiny_lora, tiny_tokenizer

pytestmark = pytest.mark.torch

BASELINE = Subject(id="base", base="base")
REQUESTS = request_set(mixed_calls())


def subject_of(folder: Path, **reading: Any) -> Subject:
    adapter = read_adapter(str(folder), name=folder.name, **reading)
    return Subject(id=f"base/{folder.name}", base="base", adapter=adapter)


def only(answered: list[SubjectAnswers]) -> tuple[Answer, ...]:
    (one,) = answered
    assert one.failure is None, one.failure
    return one.answers


@pytest.fixture(scope="module")
def engine(tiny_spec: EngineSpec) -> Iterator[HFEngine]:
    engine = HFEngine(tiny_spec)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def zoo(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("zoo")
    return functools.cache(lambda name: make_adapter(tiny_base, folder / name, name))


def test_baseline_equals_lm_eval_bit_for_bit(engine: HFEngine, tiny_base: Path) -> None:
    expected = reference_answers(reference(tiny_base, None, batch_size=4), REQUESTS)

    assert only(engine.answer(Shard(REQUESTS), [BASELINE])) == expected


@pytest.mark.parametrize("name", ZOO)
def test_adapter_equals_lm_eval_with_a_fresh_peft_model_and_leaves_the_base_as_it_was(
    engine: HFEngine, tiny_base: Path, zoo: Callable[[str], Path], name: str
) -> None:
    before = only(engine.answer(Shard(REQUESTS), [BASELINE]))
    expected = reference_answers(reference(tiny_base, zoo(name), batch_size=4), REQUESTS)

    assert only(engine.answer(Shard(REQUESTS), [subject_of(zoo(name))])) == expected
    assert only(engine.answer(Shard(REQUESTS), [BASELINE])) == before


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_equals_lm_eval_and_is_switched_clean(tmp_path: Path, name: str) -> None:
    base = make_base(tmp_path / "base", name)
    folder = make_adapter(base, tmp_path / "lora", "lora_r8_all_linear")
    engine = HFEngine(
        EngineSpec(kind="hf", base=str(base), base_digest="0", batch_size=4, sharing=False)
    )
    adapted = subject_of(folder, base_path=str(base))
    expected = [
        reference_answers(reference(base, own, batch_size=4), REQUESTS) for own in (None, folder)
    ]
    shutil.rmtree(base)  # switching needs it no more

    answered = [only(engine.answer(Shard(REQUESTS), [one])) for one in (adapted, BASELINE, adapted)]

    assert answered == [expected[1], expected[0], expected[1]]


def test_embeddings_saved_beside_an_adapter_are_used_and_taken_back(
    engine: HFEngine, tiny_base: Path, tmp_path: Path
) -> None:
    before = only(engine.answer(Shard(REQUESTS), [BASELINE]))
    folder = make_adapter(tiny_base, tmp_path / "adapter", "lora_embedding", with_embeddings=True)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    (name,) = [name for name in tensors if name.endswith("embed_tokens.base_layer.weight")]
    save_file(tensors | {name: tensors[name] * 1.5}, weights)
    expected = reference_answers(reference(tiny_base, folder, batch_size=4), REQUESTS)

    assert only(engine.answer(Shard(REQUESTS), [subject_of(folder)])) == expected
    assert only(engine.answer(Shard(REQUESTS), [BASELINE])) == before


@pytest.mark.parametrize("batch_size", [1, 7])
def test_another_batch_size_equals_lm_eval_at_that_batch_size(
    tiny_base: Path, tiny_spec: EngineSpec, zoo: Callable[[str], Path], batch_size: int
) -> None:
    engine = HFEngine(replace(tiny_spec, batch_size=batch_size))

    for folder in (None, zoo("lora_r4")):
        subject = BASELINE if folder is None else subject_of(folder)
        expected = reference_answers(reference(tiny_base, folder, batch_size=batch_size), REQUESTS)
        assert only(engine.answer(Shard(REQUESTS), [subject])) == expected


def test_batch_size_moves_log_likelihoods_by_rounding_only(
    engine: HFEngine, tiny_spec: EngineSpec
) -> None:
    single = only(HFEngine(replace(tiny_spec, batch_size=1)).answer(Shard(REQUESTS), [BASELINE]))

    for one, other in zip(single, only(engine.answer(Shard(REQUESTS), [BASELINE])), strict=True):
        assert one.is_greedy == other.is_greedy
        assert one.text == other.text
        if one.logprob is not None:
            assert other.logprob == pytest.approx(one.logprob, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 40},
        {"softmax_dtype": None},
        {"attn_implementation": "eager"},
        {"add_bos_token": True},
        {"dtype": "bfloat16"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_the_spec_reach_lm_eval(
    tiny_base: Path, tiny_spec: EngineSpec, zoo: Callable[[str], Path], settings: dict[str, Any]
) -> None:
    engine = HFEngine(replace(tiny_spec, **settings))
    expected = reference_answers(
        reference(tiny_base, zoo("lora_r4"), batch_size=4, **settings), REQUESTS
    )

    assert only(engine.answer(Shard(REQUESTS), [subject_of(zoo("lora_r4"))])) == expected


def test_another_tokenizer_is_used_where_the_spec_names_one(
    tiny_base: Path, tiny_spec: EngineSpec, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer", vocab_size=300)
    engine = HFEngine(replace(tiny_spec, tokenizer=str(tokenizer)))
    expected = reference_answers(
        reference(tiny_base, None, batch_size=4, tokenizer=str(tokenizer)), REQUESTS
    )

    assert only(engine.answer(Shard(REQUESTS), [BASELINE])) == expected


@pytest.mark.parametrize("name", ["lora_r4", "pissa", "prompt_tuning"])
def test_sampled_texts_depend_on_the_seed_alone(
    engine: HFEngine, tiny_spec: EngineSpec, zoo: Callable[[str], Path], name: str
) -> None:
    requests = request_set(mixed_calls(sampled=True)[-6:])
    subject = subject_of(zoo(name))
    first = only(engine.answer(Shard(requests), [subject]))

    torch.manual_seed(99)
    engine.answer(Shard(REQUESTS), [BASELINE])
    parts = [only(engine.answer(Shard(requests, at, 2), [subject])) for at in (1, 0)]
    other = only(HFEngine(replace(tiny_spec, seed=7)).answer(Shard(requests), [subject]))

    assert tuple(sorted(parts[0] + parts[1], key=lambda answer: answer.index)) == first
    assert other != first


def test_clean_adapter_types_are_switched_without_the_bases_files(
    tiny_base: Path, tiny_spec: EngineSpec, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    engine = HFEngine(replace(tiny_spec, base=str(copy)))
    before = only(engine.answer(Shard(REQUESTS), [BASELINE]))
    shutil.rmtree(copy)

    for name in CLEAN:
        only(engine.answer(Shard(REQUESTS), [subject_of(zoo(name))]))

    assert only(engine.answer(Shard(REQUESTS), [BASELINE])) == before


@pytest.mark.parametrize("name", MUTATING)
def test_a_changed_base_that_cannot_be_loaded_again_is_fatal(
    tiny_base: Path, tiny_spec: EngineSpec, zoo: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    engine = HFEngine(replace(tiny_spec, base=str(copy)))
    only(engine.answer(Shard(REQUESTS), [subject_of(zoo(name))]))
    shutil.rmtree(copy)

    with pytest.raises(EngineFatalError, match="loaded again"):
        engine.answer(Shard(REQUESTS), [BASELINE])


def test_a_base_that_was_replaced_on_disk_is_fatal(
    tiny_base: Path, tiny_spec: EngineSpec, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    engine = HFEngine(replace(tiny_spec, base=str(copy)))
    only(engine.answer(Shard(REQUESTS), [subject_of(zoo("pissa"))]))
    tiny_llama(copy, seed=9, attention_bias=True, mlp_bias=True)

    with pytest.raises(EngineFatalError, match="another one than when this slot was started"):
        engine.answer(Shard(REQUESTS), [BASELINE])


def failure_of(engine: HFEngine, subject: Subject, requests: RequestSet = REQUESTS) -> Failure:
    """Return a subject's failure, after checking that the baseline is as before."""
    before = only(engine.answer(Shard(requests), [BASELINE]))
    (answered,) = engine.answer(Shard(requests), [subject])
    assert answered.failure is not None
    assert answered.answers == ()
    assert only(engine.answer(Shard(requests), [BASELINE])) == before
    return answered.failure


def test_an_adapter_without_effect_is_a_failure_and_no_gain_of_zero(
    engine: HFEngine, tiny_base: Path, tmp_path: Path
) -> None:
    # Its values are not zero: only attaching it shows that nothing comes out.
    folder = tiny_lora(tiny_base, tmp_path / "muted")
    config = json.loads((folder / "adapter_config.json").read_text()) | {"lora_alpha": 0}
    (folder / "adapter_config.json").write_text(json.dumps(config))

    failure = failure_of(engine, subject_of(folder))

    assert failure.kind is FailureKind.NO_EFFECT
    assert "within rounding" in failure.message


def test_an_adapter_whose_answers_overflow_is_not_finite(
    engine: HFEngine, tiny_base: Path, tmp_path: Path
) -> None:
    folder = tiny_lora(tiny_base, tmp_path / "huge", target_modules=("o_proj",))
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor * 1e30 for name, tensor in load_file(weights).items()}, weights)

    failure = failure_of(engine, subject_of(folder))

    assert failure.kind is FailureKind.NOT_FINITE


def test_nan_that_only_some_requests_meet_fails_the_subject(
    engine: HFEngine, tiny_base: Path, tmp_path: Path
) -> None:
    # Only one token's embedding is broken, and the probe does not hold that token.
    (token,) = engine.tok_encode("z")
    assert token not in probe_rows(400, (), torch.device("cpu"))
    folder = make_adapter(tiny_base, tmp_path / "rare", "lora_embedding")
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    (name,) = [name for name in tensors if "lora_embedding_A" in name]
    tensors[name][:, token] = 1e38
    save_file(tensors, weights)
    subject = subject_of(folder)

    scored = failure_of(engine, subject, request_set([("loglikelihood", ("z z z", " red"))]))
    written = failure_of(
        engine, subject, request_set([("generate_until", ("z z z", {"max_gen_toks": 3}))])
    )

    assert scored.kind is written.kind is FailureKind.NOT_FINITE
    assert "request 0" in scored.message
    assert "generation" in written.message


def test_files_that_changed_since_planning_are_refused(
    engine: HFEngine, tiny_base: Path, tmp_path: Path
) -> None:
    folder = tiny_lora(tiny_base, tmp_path / "adapter")
    subject = subject_of(folder)
    tiny_lora(tiny_base, folder, seed=3)

    failure = failure_of(engine, subject)

    assert failure.kind is FailureKind.UNREADABLE
    assert "other content" in failure.message


def test_an_exception_in_an_adapters_forward_is_its_failure_and_leaves_no_trace(
    engine: HFEngine, tiny_base: Path, tmp_path: Path
) -> None:
    # A prompt longer than the rotary cache is no problem, one of another width is.
    folder = make_adapter(tiny_base, tmp_path / "prompt", "prompt_tuning")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["prompt_tuning_init"] = "RANDOM"
    config["num_attention_heads"] = 4
    (folder / "adapter_config.json").write_text(json.dumps(config | {"token_dim": 32}))
    weights = folder / "adapter_model.safetensors"
    save_file({"prompt_embeddings": torch.randn(3, 32)}, weights)

    failure = failure_of(engine, subject_of(folder))

    assert failure.kind is FailureKind.CRASHED
    assert failure.retryable
    assert "Traceback" in failure.detail


def test_memory_that_runs_out_fails_the_unit_and_not_the_engine(tmp_path: Path) -> None:
    # A million tokens of eager attention: refused by every machine, before any work is done.
    base = tiny_llama(tmp_path / "base", hidden=8, max_position_embeddings=2_000_000)
    engine = HFEngine(
        EngineSpec(kind="hf", base=str(base), base_digest="0", attn_implementation="eager")
    )
    fits = request_set([("loglikelihood_rolling", ("A short text.",))])
    before = only(engine.answer(Shard(fits), [BASELINE]))
    too_long = request_set([("loglikelihood_rolling", ("A" * 1_500_000,))])

    with pytest.raises(CellError, match="memory ran out") as raised:
        engine.answer(Shard(too_long), [BASELINE])

    assert raised.value.kind == FailureKind.OUT_OF_MEMORY
    assert raised.value.retryable
    assert only(engine.answer(Shard(fits), [BASELINE])) == before


def test_a_request_that_cannot_be_put_to_the_model_fails_the_unit_and_not_the_engine(
    engine: HFEngine,
) -> None:
    empty = request_set([("loglikelihood", ("A context", ""))])
    too_long = request_set([("loglikelihood", ("A context", " word" * 300))])

    with pytest.raises(CellError, match="encodes to no tokens") as raised:
        engine.answer(Shard(empty), [BASELINE])
    with pytest.raises(CellError, match="more than the 256 of the model"):
        engine.answer(Shard(too_long), [BASELINE])

    assert raised.value.kind == FailureKind.TASK_FAILED
    assert only(engine.answer(Shard(REQUESTS), [BASELINE]))


def test_adapters_of_one_content_stay_attached_and_of_one_name_do_not(
    engine: HFEngine, tiny_base: Path, tmp_path: Path
) -> None:
    first = subject_of(tiny_lora(tiny_base, tmp_path / "a" / "same", seed=1))
    second = subject_of(tiny_lora(tiny_base, tmp_path / "b" / "same", seed=2))

    assert first.adapter is not None
    assert second.adapter is not None
    assert first.adapter.digest != second.adapter.digest
    assert only(engine.answer(Shard(REQUESTS), [first])) != only(
        engine.answer(Shard(REQUESTS), [second])
    )
