"""The ways in which vLLM gives a wrong number without a word, or ends, and the tests of each.

Each test fails without its workaround, or holds the routing that keeps the case away.
"""

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raypeft.core.records import FailureKind, LoraRoom, Shard
from raypeft.engines.build import build_engine
from raypeft.errors import CellError
from tests.engines.samples import mixed_calls, request_set
from tests.vllm.conftest import VLLMLab, in_this_process, subject_of

_ANSWERS = "engines/test_vllm_answers.py::"
_SETTINGS = "engines/test_vllm_settings.py::"
_ROUTING = "core/test_vllm_routing.py::"
_PARITY = "vllm/test_parity.py::"
_BAD = "vllm/test_bad_adapters.py::test_each_bad_adapter_fails_by_name_and_the_good_ones_answer"
_CHANGED = (
    "vllm/test_bad_adapters.py::"
    "test_an_adapter_that_was_trained_on_in_place_is_not_taken_for_the_planned_one"
)
_AS_HF = f"{_PARITY}test_all_subjects_at_once_answer_as_hf"
_CACHED = f"{_PARITY}test_choices_read_their_context_from_the_cache_once_for_each_adapter"
_UNTRUE = f"{_ANSWERS}test_what_the_cache_reached_into_is_not_believed"
_NOT_FOLLOWED = f"{_SETTINGS}test_what_vllm_would_not_follow_is_refused"
_HERE = "vllm/test_traps.py::"

TRAPS: Mapping[str, tuple[str, ...]] = {
    # --- log-probabilities and the prefix cache
    "its two model runners give prompt log-probabilities of two shapes": (
        f"{_ANSWERS}test_a_tail_is_read_from_the_end_by_either_runner",
    ),
    "rows of the cached part are uninitialised, or absent": (_UNTRUE, _AS_HF),
    "a block of the cache ends within the continuation": (_UNTRUE, _AS_HF),
    "asked for prompt log-probabilities, it leaves the cache alone": (_CACHED,),
    "each choice costs a request": (f"{_PARITY}test_one_token_choices_are_one_request",),
    "more than 128 tokens in one request are refused": (_AS_HF,),
    "ranks are those of the list, and tied tokens are not all of rank 1": (
        f"{_ANSWERS}test_on_a_tie_both_are_greedy_whichever_was_sampled",
        "vllm/test_lm_eval_model.py::test_on_ties_in_16_bits_greedy_is_what_lm_evals_own_vllm_says",
    ),
    "asked by one request, prompt log-probabilities are computed for the whole batch": (
        f"{_HERE}test_a_call_holds_one_kind_of_request",
    ),
    "lm-eval's class cuts rows two tokens shorter than HFLM": (_AS_HF,),
    # --- the output head and base rows
    "a wrapped head gets the wrong rows, and writes out of bounds": (
        f"{_SETTINGS}test_room_for_adapters_never_has_the_head_or_the_embeddings",
        _BAD,
    ),
    "told to wrap nothing, it wraps everything": (
        f"{_HERE}test_nothing_to_wrap_is_refused_where_vllm_would_wrap_everything",
    ),
    "on a CPU base rows of a mixed batch get another adapter's weights": (
        f"{_ANSWERS}test_the_base_never_shares_a_call_with_an_adapter",
        _AS_HF,
    ),
    # --- adapters
    "parts of an adapter are left out, by module, prefix or layer": (_BAD,),
    "tensors of a smaller base are pasted into a corner": (_BAD,),
    "`r` unlike the tensors' rank gives another scaling": (_BAD,),
    "`r` above the rank of every tensor is refused at load": (
        f"{_ROUTING}test_room_is_made_for_the_rank_that_the_config_speaks_of",
        "vllm/test_lm_eval_model.py::"
        "test_an_adapter_whose_r_no_tensor_has_gets_the_room_that_vllm_asks_for",
    ),
    "settings that PEFT follows are never read, or refused": (
        _BAD,
        f"{_ROUTING}test_every_other_type_has_its_name_in_the_reason",
    ),
    "under a number that it knows, the old adapter answers": (_CHANGED,),
    "the cache is keyed by names, not by content": (_CHANGED, _CACHED),
    "one name under two numbers ends the engine": (
        f"{_HERE}test_two_subjects_of_one_content_are_one_adapter_to_vllm",
    ),
    "an adapter that is not held is read from disk within a step": (
        f"{_SETTINGS}test_room_for_adapters_never_has_the_head_or_the_embeddings",
        "vllm/test_bad_adapters.py::test_more_adapters_than_it_holds_are_answered_in_groups",
    ),
    "only some numbers may be the highest rank": (
        f"{_SETTINGS}test_room_for_adapters_never_has_the_head_or_the_embeddings",
    ),
    "on a GPU adapters are computed in 16 bits": (_NOT_FOLLOWED,),
    "in 16 bits adapters of 32 are rounded": (
        "api/test_engines_vllm.py::"
        "test_a_subject_whose_certificate_is_refused_is_answered_by_hf_and_says_so",
    ),
    # --- the engine
    "NaN stays in the cache": (
        "vllm/test_contract.py::test_an_engine_that_has_computed_nan_is_given_up",
    ),
    "after an exception in a step the next call waits without end": (
        f"{_ANSWERS}test_whatever_vllm_raises_ends_the_engine",
    ),
    "a killed core is waited for without end": (
        "vllm/test_contract.py::test_a_killed_engine_is_fatal_and_leaves_nothing_behind",
    ),
    "a core that dies at start does not say why": (
        "vllm/test_ladder.py::test_a_core_that_dies_for_memory_is_known_by_what_it_wrote",
    ),
    "prompt log-probabilities of preempted requests are wrong": (
        f"{_ANSWERS}test_a_call_in_which_a_request_was_preempted_is_asked_again",
        "vllm/test_counters.py::test_an_engine_counts_its_own_steps_beside_another_that_preempts",
    ),
    "its counters belong to the process": (
        "vllm/test_counters.py::test_an_engine_counts_its_own_steps_beside_another_that_preempts",
    ),
    "in a Ray actor it takes Ray for several GPUs": (
        f"{_SETTINGS}test_several_gpus_name_the_executor",
    ),
    "its seed is that of the engine": (
        f"{_PARITY}test_sampled_texts_depend_on_seed_and_request_alone",
    ),
    "it may run in one process or in several": (
        "vllm/test_ladder.py::"
        "test_in_this_process_and_on_the_rung_that_a_loss_taught_the_numbers_are_the_same",
    ),
    "the CPU build is no package of the name vllm": (
        f"{_HERE}test_the_installed_vllm_is_named_as_it_is_itself",
    ),
}

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::Warning")]


def test_every_trap_names_tests_that_there_are() -> None:
    root = Path(__file__).parents[1]
    named = {test for tests in TRAPS.values() for test in tests}
    files = {test.partition("::")[0] for test in named}
    known = {
        f"{file}::{node.name}"
        for file in files
        for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert named - known == set()


def test_two_subjects_of_one_content_are_one_adapter_to_vllm(
    vllm_engine: Any, vllm_lab: VLLMLab
) -> None:
    twin = replace(vllm_lab.adapters[0], name="twin")
    subjects = [subject_of(vllm_lab.adapters[0]), subject_of(twin)]

    first, second = vllm_engine.answer(Shard(request_set(mixed_calls())), subjects)

    assert first.failure is None
    assert first.answers == second.answers
    # And it can still be used: under two numbers vLLM's scheduler would have ended.
    (after,) = vllm_engine.answer(Shard(request_set(mixed_calls())), [vllm_lab.baseline])
    assert after.failure is None


def test_a_call_holds_one_kind_of_request(
    vllm_engine: Any, vllm_lab: VLLMLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[set[bool]] = []
    generate = vllm_engine.model.generate

    def watched(prompts: Any, *, sampling_params: Any, **settings: Any) -> Any:
        kinds.append({one.prompt_logprobs is not None for one in sampling_params})
        return generate(prompts, sampling_params=sampling_params, **settings)

    monkeypatch.setattr(vllm_engine.model, "generate", watched)
    vllm_engine.answer(Shard(request_set(mixed_calls())), vllm_lab.subjects)

    assert {frozenset(one) for one in kinds} == {frozenset({True}), frozenset({False})}


def test_nothing_to_wrap_is_refused_where_vllm_would_wrap_everything(vllm_lab: VLLMLab) -> None:
    room = LoraRoom(max_rank=8, num_adapters=1, target_modules=("lm_head",))

    with in_this_process(), pytest.raises(CellError, match="must not wrap") as raised:
        build_engine(replace(vllm_lab.spec, lora=room))
    assert raised.value.kind == FailureKind.UNSUPPORTED


def test_the_installed_vllm_is_named_as_it_is_itself(vllm_engine: Any) -> None:
    import vllm

    assert vllm_engine.hardware().software["vllm"] == vllm.__version__
