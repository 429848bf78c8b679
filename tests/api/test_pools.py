"""What a slot of a sweep runs on, down to the options that reach Ray."""

from typing import Any

import pytest

from raypeft.api.pools import check_nodes, hardware_profile
from raypeft.core.spec import make_sweep
from raypeft.errors import SetupError, SpecError
from raypeft.runtime.options import actor_options


def options_of(hardware: dict[str, Any], *, has_gpus: bool) -> dict[str, Any]:
    values = {"output": "runs/x", "bases": ["a/b"], "tasks": ["t"], "engine": {"kind": "vllm"}}
    sweep = make_sweep({**values, "hardware": hardware})
    return actor_options(hardware_profile(sweep.hardware, has_gpus=has_gpus))


@pytest.mark.parametrize("num_gpus", [1, 2, 8])
def test_a_tensor_parallel_slot_gets_that_many_gpus_of_one_node(num_gpus: int) -> None:
    options = options_of({"tensor_parallel": num_gpus}, has_gpus=True)
    assert options["num_gpus"] == num_gpus
    # Hidden GPUs would be none for vLLM: Ray shows the slot its own.
    assert "runtime_env" not in options


def test_gpus_may_be_said_beside_tensor_parallel_and_must_agree() -> None:
    agreeing = {"tensor_parallel": 4, "gpus": 4, "accelerator": "H100"}
    options = options_of(agreeing, has_gpus=True)
    assert (options["num_gpus"], options["accelerator_type"]) == (4, "H100")
    with pytest.raises(SpecError, match="must equal gpus, which is 2"):
        options_of({"tensor_parallel": 4, "gpus": 2}, has_gpus=True)


def test_tensor_parallel_without_gpus_is_refused() -> None:
    with pytest.raises(SpecError, match="must equal gpus, which is 0"):
        options_of({"tensor_parallel": 4}, has_gpus=False)


@pytest.mark.parametrize(("has_gpus", "num_gpus"), [(True, 1), (False, 0)])
def test_a_slot_takes_one_gpu_where_there_are_any(has_gpus: bool, num_gpus: int) -> None:
    assert options_of({}, has_gpus=has_gpus)["num_gpus"] == num_gpus


def test_a_base_over_several_nodes_needs_a_cluster() -> None:
    hardware = {"tensor_parallel": 4, "gpus": 4, "gpus_per_node": 2}
    assert options_of(hardware, has_gpus=True)["num_gpus"] == 0
    values = {"output": "runs/x", "bases": ["a/b"], "tasks": ["t"], "engine": {"kind": "vllm"}}
    sweep = make_sweep({**values, "hardware": hardware})

    check_nodes(sweep, "ray")
    with pytest.raises(SetupError, match="local pool is one node"):
        check_nodes(sweep, "local")
