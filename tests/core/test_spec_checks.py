from typing import Any

import pytest

from raypeft.core.spec import make_sweep
from raypeft.errors import SpecError

MINIMAL: dict[str, Any] = {"output": "runs/x", "bases": ["gpt2"], "tasks": ["arc_easy"]}


def problems(**values: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        make_sweep(MINIMAL | values)
    return {problem.place: str(problem) for problem in caught.value.problems}


def test_two_bases_of_one_name_are_refused_with_both_and_the_remedy() -> None:
    found = problems(bases=["a/gpt2", {"path": "b/gpt2"}, {"path": "c", "name": "gpt2"}])
    assert found["bases[1]"] == (
        'bases[1]: "b/gpt2" has the name "gpt2", as bases[0] has; give one of them another `name:`'
    )
    assert "as bases[0] has" in found["bases[2]"]


def test_names_are_compared_even_where_another_key_of_the_base_is_wrong() -> None:
    found = problems(bases=[{"path": "a/x", "dtype": "fp8"}, "b/x"])
    assert set(found) == {"bases[0].dtype", "bases[1]"}


def test_two_adapters_of_one_name_are_refused() -> None:
    adapters = [{"path": "a", "name": "n"}, {"path": "b", "name": "n"}]
    found = problems(bases=[{"path": "gpt2", "adapters": adapters}])
    assert found == {
        "bases[0].adapters[1]": 'bases[0].adapters[1]: "b" has the name "n", as "a" at '
        "bases[0].adapters[0] has; give one of them another `name:`"
    }


def test_the_same_adapter_twice_is_refused_unless_the_revision_differs() -> None:
    found = problems(bases=[{"path": "gpt2", "adapters": ["o/a", {"path": "o/a", "name": "b"}]}])
    assert "stands here again, first at bases[0].adapters[0]" in found["bases[0].adapters[1]"]
    two = ["o/a", {"path": "o/a", "revision": "v2", "name": "b"}]
    assert make_sweep(MINIMAL | {"bases": [{"path": "gpt2", "adapters": two}]})


def test_one_adapter_name_on_two_bases_is_fine() -> None:
    adapters = [{"path": "a", "name": "n"}]
    bases = [{"path": "x", "adapters": adapters}, {"path": "y", "adapters": adapters}]
    assert len(make_sweep(MINIMAL | {"bases": bases}).bases) == 2


def test_a_task_stands_once_whatever_its_settings() -> None:
    found = problems(tasks=["mmlu", "gsm8k", {"name": "mmlu", "limit": 5}])
    assert list(found) == ["tasks[2]"]
    assert "first at tasks[0]" in found["tasks[2]"]


def test_multiturn_shots_need_a_chat_template() -> None:
    found = problems(evaluation={"fewshot_as_multiturn": True})
    assert "set `apply_chat_template: true` too" in found["evaluation.fewshot_as_multiturn"]


def test_settings_of_vllm_are_for_vllm() -> None:
    settings = {"max_num_seqs": 32}
    for kind in ("hf", "fake"):
        found = problems(engine={"kind": kind, "vllm": settings})
        assert f"engine.kind is {kind}" in found["engine.vllm"]
    for kind in ("auto", "vllm"):
        made = make_sweep(MINIMAL | {"engine": {"kind": kind, "vllm": settings}})
        assert made.engine.vllm.max_num_seqs == 32


def test_vllm_has_one_dtype_of_the_softmax() -> None:
    found = problems(engine={"kind": "vllm", "softmax_dtype": "model"})
    assert "float32" in found["engine.softmax_dtype"]
    make_sweep(MINIMAL | {"engine": {"kind": "auto", "softmax_dtype": "model"}})


@pytest.mark.parametrize("names", [("x", "x@hf"), ("x@hf", "x")])
def test_no_base_is_named_as_the_second_baseline_of_another(names: tuple[str, str]) -> None:
    found = problems(bases=[{"path": "a/b", "name": name} for name in names])
    assert "second baseline" in found["bases[1]"]
    make_sweep(MINIMAL | {"bases": [{"path": "a/b", "name": "x@hf"}]})


def test_options_are_for_the_fake_engine() -> None:
    assert "only the fake engine" in problems(engine={"options": {"a": 1}})["engine.options"]
    made = make_sweep(MINIMAL | {"engine": {"kind": "fake", "options": {"a": 1}}})
    assert made.engine.options == {"a": 1}


def test_each_node_gives_the_same_number_of_gpus() -> None:
    hardware = {"tensor_parallel": 8, "gpus_per_node": 3}
    found = problems(engine={"kind": "vllm"}, hardware=hardware)
    assert "3 does not divide tensor_parallel, which is 8" in found["hardware.gpus_per_node"]
    make_sweep(
        {**MINIMAL, "engine": {"kind": "vllm"}, "hardware": {**hardware, "gpus_per_node": 4}}
    )


def test_tensor_parallel_needs_vllm() -> None:
    found = problems(hardware={"tensor_parallel": 2})
    assert "2 needs the vllm engine" in found["hardware.tensor_parallel"]


def test_an_accelerator_without_a_gpu_is_a_contradiction() -> None:
    found = problems(hardware={"gpus": 0, "accelerator": "H100"})
    assert "hardware.gpus is 0" in found["hardware.accelerator"]


def test_output_and_store_are_two_folders() -> None:
    assert "is the output folder too" in problems(store="runs/x/")["store"]


def test_what_is_wrong_by_itself_hides_nothing_between_the_others() -> None:
    found = problems(
        bases=[5, "a/x", {"path": "b/x", "adapters": [{"path": ""}, "q", "q"]}],
        engine={"kind": "hf", "batch_size": 0, "options": {"a": 1}},
        hardware={"gpus": -1, "tensor_parallel": 2, "accelerator": "H100"},
        evaluation={"fewshot_as_multiturn": True, "seed": "x"},
        tasks=["t", {"name": "t", "limit": 0}, {}],
    )
    assert set(found) == {
        "bases[0]",
        "bases[2]",
        "bases[2].adapters[0].path",
        "bases[2].adapters[2]",
        "engine.batch_size",
        "engine.options",
        "hardware.gpus",
        "hardware.tensor_parallel",
        "evaluation.fewshot_as_multiturn",
        "evaluation.seed",
        "tasks[1]",
        "tasks[1].limit",
        "tasks[2].name",
    }


def test_a_wrong_engine_kind_accuses_nothing_that_depends_on_it() -> None:
    found = problems(engine={"kind": "fak", "options": {"a": 1}}, hardware={"tensor_parallel": 2})
    assert set(found) == {"engine.kind"}
