"""A hardware profile → Ray's options, as plain functions.

Runs without Ray. What Ray cannot do is refused here and not ignored there.
"""

from collections.abc import Collection, Mapping, Sequence
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
        gpus_per_node: Accelerators of one node; None says that all of a slot's are on one.
        labels: Node labels the node must have, for instance `{"raypeft/hw": "a100-80"}`.
    """

    gpus: float = 0.0
    cpus: float = 1.0
    accelerator: str | None = None
    memory_gib: float | None = None
    tensor_parallel: int = 1
    gpus_per_node: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def spans_nodes(self) -> bool:
        """Whether a slot's accelerators are those of several nodes."""
        return self.gpus_per_node is not None and self.tensor_parallel > self.gpus_per_node


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
    if profile.spans_nodes:
        return _within_group(options, profile)
    if profile.memory_gib is not None:
        options["memory"] = int(profile.memory_gib * _GIB)
    if profile.accelerator is not None:
        options["accelerator_type"] = profile.accelerator
    if profile.labels:
        options["label_selector"] = dict(profile.labels)
    if profile.gpus == 0:
        options["runtime_env"] = {"env_vars": dict(_HIDE_ACCELERATORS)}
    return options


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """A placement group: what Ray reserves for one slot on several nodes, all of it or nothing.

    Attributes:
        bundles: What is reserved; a bundle lies on one node.
        label_selectors: For each bundle the labels that its node must have; empty for none.
        strategy: Ray's.
    """

    bundles: tuple[Mapping[str, float], ...]
    label_selectors: tuple[Mapping[str, str], ...] = ()
    strategy: str = "PACK"


def group_request(profile: HardwareProfile) -> GroupRequest | None:
    """Return the placement group of a slot whose accelerators are on several nodes, else None.

    vLLM wants bundles of one accelerator each and puts a worker into every one. The slot itself
    takes the cores of the first, so that it is on a node with accelerators.
    """
    if not profile.spans_nodes:
        return None
    own: dict[str, float] = {"GPU": 1.0}
    if profile.accelerator is not None:
        own[f"accelerator_type:{profile.accelerator}"] = 0.001
    first = {"CPU": profile.cpus, **own} if profile.cpus else own
    if profile.memory_gib is not None:
        first = {**first, "memory": int(profile.memory_gib * _GIB)}
    bundles = (first, *(dict(own) for _ in range(profile.tensor_parallel - 1)))
    labels = tuple(dict(profile.labels) for _ in bundles) if profile.labels else ()
    return GroupRequest(bundles=bundles, label_selectors=labels)


def _within_group(options: dict[str, Json], profile: HardwareProfile) -> dict[str, Json]:
    """Return the options of a slot that leaves its group's accelerators to vLLM's workers.

    It may see its node's accelerators, which tell what hardware it is.
    """
    memory = {} if profile.memory_gib is None else {"memory": int(profile.memory_gib * _GIB)}
    # Without it vLLM would count the bundles itself, and in another order than they were given.
    indices = ",".join(str(at) for at in range(profile.tensor_parallel))
    variables = {"VLLM_RAY_BUNDLE_INDICES": indices}
    return {**options, **memory, "num_gpus": 0, "runtime_env": {"env_vars": variables}}


def call_options() -> dict[str, Json]:
    """Return the options of the Ray task that a call is: takes nothing, no hidden retry."""
    return {
        "num_gpus": 0,
        "num_cpus": 0,
        "max_retries": 0,
        "runtime_env": {"env_vars": dict(_HIDE_ACCELERATORS)},
    }


def monitor_options() -> dict[str, Json]:
    """Return the options of the actor that hears slots: takes nothing, and may be started anew."""
    return {
        "num_gpus": 0,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": dict(_HIDE_ACCELERATORS)},
    }


def slots_that_fit(options: Mapping[str, Json], nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many slots the nodes hold at once.

    Args:
        options: From `actor_options`; labels are not looked at.
        nodes: For each node its resources, under Ray's names.
    """
    needs = needs_of(options)
    if not needs:
        raise ValueError("a slot that needs nothing fits any number of times; set cpus or gpus")
    return sum(
        min(fits_often(amount, node.get(name, 0.0)) for name, amount in needs.items())
        for node in nodes
    )


def needs_of(options: Mapping[str, Json]) -> dict[str, float]:
    """Return what a slot takes of a node, under Ray's names; labels are not looked at.

    Args:
        options: From `actor_options`.
    """
    needs = {"GPU": options["num_gpus"], "CPU": options["num_cpus"]}
    if "memory" in options:
        needs["memory"] = options["memory"]
    if "accelerator_type" in options:
        needs[f"accelerator_type:{options['accelerator_type']}"] = 0.001
    return {name: amount for name, amount in needs.items() if amount > 0}


def fits_often(amount: float, total: float) -> int:
    """Return how many times an amount fits into what a node has."""
    # Ray counts in ten-thousandths, which also keeps 0.1 + 0.2 from being more than 0.3.
    return round(total * 10_000) // max(1, round(amount * 10_000))


def avoiding(options: dict[str, Json], nodes: Collection[str]) -> dict[str, Json]:
    """Return options under which Ray keeps a slot off these nodes.

    Args:
        options: From `actor_options`.
        nodes: Ray's ids of the nodes.
    """
    if not nodes:
        return options
    selector = {
        **options.get("label_selector", {}),
        "ray.io/node-id": f"!in({','.join(sorted(nodes))})",
    }
    return {**options, "label_selector": selector}


_SWITCHES = (
    "DO_NOT_TRACK",
    "HF_DATASETS_OFFLINE",
    "HF_EVALUATE_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "RAYPEFT_LOG_JSON",
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
    per_node = profile.gpus_per_node
    if per_node is not None and per_node < 1:
        add("gpus_per_node", per_node, "must be 1 or more")
    elif per_node is not None and profile.spans_nodes and parallel % per_node:
        add("tensor_parallel", parallel, f"is no multiple of gpus_per_node, which is {per_node}")
    if profile.accelerator is not None and gpus == 0:
        add("accelerator", profile.accelerator, "is asked for with gpus 0", "set gpus")
    return problems
