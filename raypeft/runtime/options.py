"""A hardware profile → Ray's options, as plain functions.

Runs without Ray. What Ray cannot do is refused here and not ignored there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raypeft.core.records import Json
from raypeft.errors import Problem, SpecError

_GIB = 2**30

_HIDE_ACCELERATORS = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
"""With `num_gpus=0` Ray leaves the variables unset, and a process on a GPU node sees them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """What one slot runs on.

    Attributes:
        gpus: Accelerators; a share below 1 lets slots share one.
        cpus: Cores that Ray counts for it.
        accelerator: Ray's accelerator type, for instance `H100`. It tells no memory size or form
            from another: every A100 is an `A100`. Use `labels` to tell them apart.
        memory_gib: Memory beside the accelerator that Ray counts for it; None counts none.
        tensor_parallel: Accelerators that hold one base together.
        labels: Node labels the node must have, for instance `{"raypeft/hw": "a100-80"}`.
    """

    gpus: float = 0.0
    cpus: float = 1.0
    accelerator: str | None = None
    memory_gib: float | None = None
    tensor_parallel: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)


def actor_options(profile: HardwareProfile) -> dict[str, Json]:
    """Return the options of the Ray actor that a slot is.

    Raises:
        SpecError: If Ray cannot give what the profile asks for; every problem is named.
    """
    problems = tuple(_problems(profile))
    if problems:
        raise SpecError(problems)
    options: dict[str, Json] = {
        "num_gpus": int(profile.gpus) if float(profile.gpus).is_integer() else profile.gpus,
        "num_cpus": profile.cpus,
        # Ray would run a call again without saying so; the schedule owns every retry.
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    if profile.memory_gib is not None:
        options["memory"] = int(profile.memory_gib * _GIB)
    if profile.accelerator is not None:
        options["accelerator_type"] = profile.accelerator
    if profile.labels:
        options["label_selector"] = dict(profile.labels)
    if profile.gpus == 0:
        options["runtime_env"] = {"env_vars": dict(_HIDE_ACCELERATORS)}
    return options


def call_options() -> dict[str, Json]:
    """Return the options of the Ray task that a call is: takes nothing, no hidden retry."""
    return {
        "num_gpus": 0,
        "num_cpus": 0,
        "max_retries": 0,
        "runtime_env": {"env_vars": dict(_HIDE_ACCELERATORS)},
    }


def slots_that_fit(options: Mapping[str, Json], nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many slots the nodes hold at once.

    Args:
        options: From `actor_options`; labels are not looked at.
        nodes: For each node its resources, under Ray's names.
    """
    needs = {"GPU": options["num_gpus"], "CPU": options["num_cpus"]}
    if "memory" in options:
        needs["memory"] = options["memory"]
    if "accelerator_type" in options:
        needs[f"accelerator_type:{options['accelerator_type']}"] = 0.001
    needs = {name: amount for name, amount in needs.items() if amount > 0}
    if not needs:
        raise ValueError("a slot that needs nothing fits any number of times; set cpus or gpus")
    # Ray counts in ten-thousandths, which also keeps 0.1 + 0.2 from being more than 0.3.
    return sum(
        min(
            round(node.get(name, 0.0) * 10_000) // max(1, round(amount * 10_000))
            for name, amount in needs.items()
        )
        for node in nodes
    )


_SWITCHES = (
    "DO_NOT_TRACK",
    "HF_DATASETS_OFFLINE",
    "HF_EVALUATE_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_OFFLINE",
)
"""Switches that must mean the same everywhere. No paths, which differ between nodes, and no
tokens, since whoever may look at a cluster can read the environment of its jobs."""


def inherited_switches(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of the driver's environment that its workers must share."""
    return {name: environment[name] for name in _SWITCHES if name in environment}


def with_environment(options: dict[str, Json], variables: Mapping[str, str]) -> dict[str, Json]:
    """Return options under which the process also has these environment variables."""
    runtime_env = options.get("runtime_env", {})
    merged = {**variables, **runtime_env.get("env_vars", {})}
    return {**options, "runtime_env": {**runtime_env, "env_vars": merged}} if merged else options


def plain(options: dict[str, Json]) -> dict[str, Json]:
    """Return options without an environment of the process's own."""
    return {name: value for name, value in options.items() if name != "runtime_env"}


def _problems(profile: HardwareProfile) -> list[Problem]:
    problems: list[Problem] = []

    def add(name: str, value: object, message: str, remedy: str = "") -> None:
        problems.append(Problem(f"hardware.{name}", f"{value} {message}", remedy))

    gpus, parallel = profile.gpus, profile.tensor_parallel
    if gpus < 0:
        add("gpus", gpus, "is below 0", "use 0 for a slot on CPUs")
    elif gpus > 1 and not float(gpus).is_integer():
        add("gpus", gpus, "is no share below 1 and no whole number", "Ray gives nothing between")
    if profile.cpus < 0:
        add("cpus", profile.cpus, "is below 0")
    if profile.cpus == 0 and gpus == 0:
        add("cpus", profile.cpus, "leaves a slot without any resource", "give it cpus or gpus")
    if profile.memory_gib is not None and not profile.memory_gib > 0:
        add("memory_gib", profile.memory_gib, "must be above 0", "leave it out to count no memory")
    if parallel < 1:
        add("tensor_parallel", parallel, "must be 1 or more")
    elif parallel > 1 and parallel != gpus:
        add("tensor_parallel", parallel, f"must equal gpus, which is {gpus:g}")
    if profile.accelerator is not None and gpus == 0:
        add("accelerator", profile.accelerator, "is asked for with gpus 0", "set gpus")
    return problems
