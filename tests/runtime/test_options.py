from dataclasses import replace

import pytest

from raypeft.core.records import Json
from raypeft.errors import SpecError
from raypeft.runtime.options import (
    HardwareProfile,
    actor_options,
    call_options,
    group_request,
    inherited_switches,
    slots_that_fit,
    with_environment,
)

HIDDEN = {"env_vars": {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}}


def test_a_slot_without_gpus_cannot_see_any() -> None:
    options = actor_options(HardwareProfile(gpus=0, cpus=2))
    assert options == {
        "num_gpus": 0,
        "num_cpus": 2,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": HIDDEN,
    }


def test_a_slot_with_a_gpu_asks_for_its_kind_its_node_and_its_memory() -> None:
    profile = HardwareProfile(
        gpus=4,
        cpus=8,
        accelerator="H100",
        memory_gib=1.5,
        tensor_parallel=4,
        labels={"raypeft/hw": "h100-80"},
    )
    options = actor_options(profile)
    assert options["num_gpus"] == 4
    assert options["accelerator_type"] == "H100"
    assert options["label_selector"] == {"raypeft/hw": "h100-80"}
    assert options["memory"] == 3 * 2**29
    assert "runtime_env" not in options


def test_slots_may_share_a_gpu() -> None:
    assert actor_options(HardwareProfile(gpus=0.25))["num_gpus"] == 0.25


@pytest.mark.parametrize("gpus", [0.0, 0.5, 1.0, 2.0])
def test_ray_never_runs_anything_again_by_itself(gpus: float) -> None:
    options = actor_options(HardwareProfile(gpus=gpus))
    assert (options["max_restarts"], options["max_task_retries"]) == (0, 0)
    assert call_options()["max_retries"] == 0


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (HardwareProfile(gpus=1.5), "hardware.gpus: 1.5 is no share below 1 and no whole number"),
        (HardwareProfile(gpus=-1), "hardware.gpus: -1 is below 0"),
        (HardwareProfile(cpus=-1), "hardware.cpus: -1 is below 0"),
        (HardwareProfile(cpus=0), "hardware.cpus: 0 leaves a slot without any resource"),
        (HardwareProfile(memory_gib=0), "hardware.memory_gib: 0 must be above 0"),
        (HardwareProfile(gpus=2, tensor_parallel=4), "must equal gpus, which is 2"),
        (HardwareProfile(gpus=2, tensor_parallel=0), "must be 1 or more"),
        (
            HardwareProfile(gpus=4, tensor_parallel=4, gpus_per_node=3),
            "hardware.tensor_parallel: 4 is no multiple of gpus_per_node, which is 3",
        ),
        (HardwareProfile(accelerator="H100"), "hardware.accelerator: H100 is asked for with gpus"),
    ],
)
def test_what_ray_cannot_do_is_refused(profile: HardwareProfile, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        actor_options(profile)
    assert message in str(caught.value)


def test_every_problem_of_a_profile_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        actor_options(HardwareProfile(gpus=1.5, cpus=-2, memory_gib=-1, tensor_parallel=3))
    assert len(caught.value.problems) == 4


NODES = [
    {"CPU": 8.0, "GPU": 2.0, "memory": 32 * 2.0**30, "accelerator_type:H100": 1.0},
    {"CPU": 3.0, "memory": 8 * 2.0**30},
]


@pytest.mark.parametrize(
    ("profile", "fitting"),
    [
        (HardwareProfile(cpus=1), 11),
        (HardwareProfile(cpus=2), 5),
        (HardwareProfile(cpus=0.1), 110),
        (HardwareProfile(cpus=16), 0),
        (HardwareProfile(gpus=1), 2),
        (HardwareProfile(gpus=0.5), 4),
        (HardwareProfile(gpus=0.1, cpus=0), 20),
        (HardwareProfile(gpus=1, accelerator="A100"), 0),
        (HardwareProfile(cpus=1, memory_gib=8), 5),
    ],
)
def test_slots_are_counted_node_by_node(profile: HardwareProfile, fitting: int) -> None:
    assert slots_that_fit(actor_options(profile), NODES) == fitting


def test_workers_share_the_offline_switches_and_no_secret() -> None:
    environment = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_x", "HOME": "/home/me"}
    assert inherited_switches(environment) == {"HF_HUB_OFFLINE": "1"}


def test_an_environment_is_added_to_what_the_options_set() -> None:
    options: dict[str, Json] = {"num_cpus": 1}
    assert with_environment(options, {}) == options
    added = with_environment(actor_options(HardwareProfile()), {"HF_HUB_OFFLINE": "1"})
    assert added["runtime_env"]["env_vars"] == {"HF_HUB_OFFLINE": "1", **HIDDEN["env_vars"]}


ACROSS = HardwareProfile(
    gpus=4, cpus=2, tensor_parallel=4, gpus_per_node=2, accelerator="H100", memory_gib=1
)


def test_a_slot_over_several_nodes_reserves_a_bundle_for_each_of_vllms_workers() -> None:
    request = group_request(ACROSS)

    assert request is not None
    own = {"GPU": 1.0, "accelerator_type:H100": 0.001}
    # The slot is on a node with GPUs, and takes none: vLLM's workers do, one from each bundle.
    assert request.bundles == ({"CPU": 2, **own, "memory": 2**30}, own, own, own)
    assert request.strategy == "PACK"
    assert request.label_selectors == ()
    options = actor_options(ACROSS)
    assert (options["num_gpus"], options["num_cpus"], options["memory"]) == (0, 2, 2**30)
    # The group has the accelerator; asked for again, it would be another one.
    assert "accelerator_type" not in options
    assert options["runtime_env"] == {"env_vars": {"VLLM_RAY_BUNDLE_INDICES": "0,1,2,3"}}


def test_labels_are_those_of_every_bundle() -> None:
    request = group_request(replace(ACROSS, labels={"raypeft/hw": "h100-80"}))

    assert request is not None
    assert request.label_selectors == ({"raypeft/hw": "h100-80"},) * 4


@pytest.mark.parametrize("per_node", [None, 4, 8])
def test_a_slot_on_one_node_has_no_group(per_node: int | None) -> None:
    profile = HardwareProfile(gpus=4, tensor_parallel=4, gpus_per_node=per_node)

    assert group_request(profile) is None
    assert actor_options(profile)["num_gpus"] == 4
