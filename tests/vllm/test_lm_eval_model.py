"""`raypeft-vllm` as lm-eval calls it, greedy flags on ties, and an adapter with a large `r`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from safetensors.numpy import load_file, save_file

from raypeft.core.records import EngineSpec, Shard, Subject
from raypeft.core.vllm_routing import lora_room, why_not_vllm
from raypeft.engines.adapters import read_adapter
from raypeft.engines.build import build_engine
from raypeft.engines.lora_facts import read_lora_facts
from raypeft.engines.vllm_capabilities import lm_eval_class, shut_down
from raypeft.engines.vllm_plugin import NAME, RaypeftVLLM, read_arguments
from raypeft.errors import SpecError
from tests.engines.samples import mixed_calls, request_set
from tests.support.lab import Lab
from tests.support.tiny import tiny_llama, tiny_lora
from tests.vllm.conftest import (
    BLOCK,
    MAX_LENGTH,
    PARITY_LENGTH,
    VLLMLab,
    in_this_process,
    subject_of,
)
from tests.vllm.test_parity import assert_same, one_token_words, text_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::Warning")]

TASKS = ["tiny_mc", "tiny_letters", "tiny_lambada", "tiny_gen", "tiny_rolling"]
SETTINGS: dict[str, Any] = {
    "block_size": BLOCK,
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_seqs": 32,
    "enforce_eager": True,
}


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    with in_this_process():
        yield


def evaluated(lab: Lab, model: Any, **arguments: Any) -> dict[str, dict[str, float]]:
    """Return the numbers that `lm_eval run` computes."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results: Any = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=[str(lab.tasks.folder)], include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )
    return {
        task: {key: value for key, value in found.items() if isinstance(value, float)}
        for task, found in results["results"].items()
    }


def assert_close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys() == set(TASKS)
    for task in TASKS:
        assert ours[task] == pytest.approx(theirs[task], rel=2e-3), task


def test_the_base_has_the_numbers_of_lm_evals_own_vllm(lab: Lab, vllm_lab: VLLMLab) -> None:
    base = str(vllm_lab.base)
    own = lm_eval_class()(
        pretrained=base, dtype="float32", batch_size="auto", max_model_len=256, **SETTINGS
    )
    theirs = evaluated(lab, own)
    shut_down(own.model)
    del own

    model = RaypeftVLLM(pretrained=base, dtype="float32", max_model_len=MAX_LENGTH, **SETTINGS)
    ours = evaluated(lab, model)
    model.close()

    assert_close(ours, theirs)


def test_an_adapter_has_the_numbers_of_lm_evals_hf(lab: Lab, vllm_lab: VLLMLab) -> None:
    adapter, base = vllm_lab.adapters[1].path, str(vllm_lab.base)
    model = RaypeftVLLM(
        pretrained=base, adapter=adapter, dtype="float32", max_length=MAX_LENGTH, **SETTINGS
    )
    ours = evaluated(lab, model)
    info = model.get_model_info()
    model.close()

    theirs = evaluated(lab, "hf", pretrained=base, peft=adapter, max_length=PARITY_LENGTH)
    assert_close(ours, theirs)
    assert info["adapter_digest"] == vllm_lab.adapters[1].digest
    assert NAME == "raypeft-vllm"


def with_twin_tokens(base: Path) -> Path:
    """Let every second token have the weights of the one before it in the output head."""
    (file,) = base.glob("*.safetensors")
    tensors = load_file(file)
    head = tensors["lm_head.weight"]
    head[1::2] = head[: len(head) // 2 * 2 : 2]
    save_file(tensors, file, metadata={"format": "pt"})
    return base


def test_on_ties_in_16_bits_greedy_is_what_lm_evals_own_vllm_says(tmp_path: Path) -> None:
    base = with_twin_tokens(tiny_llama(tmp_path / "twins", hidden=128))
    spec = EngineSpec(
        kind="vllm",
        base=str(base),
        base_digest="twins",
        dtype="bfloat16",
        max_length=MAX_LENGTH,
        options=SETTINGS,
    )
    engine: Any = build_engine(spec)
    contexts = ["Which one?", "And so:", text_of(engine, BLOCK + 3, "Tie")]
    words = {one: one_token_words(engine, one) for one in contexts}
    calls: Any = [("loglikelihood", (one, word)) for one in contexts for word in words[one]]
    tails = [(one, f"{word} the") for one in contexts for word in words[one][:40]]
    calls += [("loglikelihood", pair) for pair in tails]
    requests = request_set(calls, task="ties")

    (ours,) = engine.answer(Shard(requests), [Subject(id="base", base="base")])
    asked = [
        Instance("loglikelihood", doc={}, arguments=one.arguments, idx=0)
        for one in requests.requests
    ]
    theirs = lm_eval_class().loglikelihood(engine, asked)
    engine.close()

    assert [answer.is_greedy for answer in ours.answers] == [one[1] for one in theirs]
    greedy = {one.arguments[0]: 0 for one in requests.requests[: -len(tails)]}
    for one, answer in zip(requests.requests[: -len(tails)], ours.answers, strict=False):
        greedy[one.arguments[0]] += bool(answer.is_greedy)
    assert max(greedy.values()) > 1, "no tie was asked about"


def test_an_adapter_whose_r_no_tensor_has_gets_the_room_that_vllm_asks_for(
    vllm_lab: VLLMLab, hf_engine: Any, tmp_path: Path
) -> None:
    folder = tiny_lora(
        vllm_lab.base, tmp_path / "wide", rank=64, rank_pattern={"q_proj": 4, "v_proj": 4}
    )
    adapter = read_adapter(str(folder), name="wide", base_path=str(vllm_lab.base))
    facts = read_lora_facts(adapter, None, str(vllm_lab.base))
    room = lora_room([facts])
    assert why_not_vllm(adapter.config, facts, "llama") == ""
    assert max(facts.ranks.values()) == 4
    spec = EngineSpec(
        kind="vllm", base=str(vllm_lab.base), base_digest="base", lora=room, options=SETTINGS
    )
    requests = Shard(request_set(mixed_calls()))

    engine = build_engine(spec)
    (found,) = engine.answer(requests, [subject_of(adapter)])
    engine.close()
    (expected,) = hf_engine.answer(requests, [subject_of(adapter)])

    assert found.failure is None
    assert_same(found.answers, expected.answers)


def test_a_seed_of_zero_is_one_and_below_there_is_none() -> None:
    assert read_arguments({"pretrained": "base", "seed": 0}).seed == 0
    with pytest.raises(SpecError, match="seed: is -1; allowed is a whole number from 0"):
        read_arguments({"pretrained": "base", "seed": -1})
