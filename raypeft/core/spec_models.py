"""The sweep file as models: which keys there are, what they default to, what they mean.

Each model checks its own fields. What concerns several fields is `spec_checks`' business, words
for people are `spec_problems`', and reading and writing the file `raypeft.core.spec`'s.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from raypeft.core.certificate import TOLERANCE_NATS
from raypeft.core.quantities import size_bytes
from raypeft.core.records import EvaluationSettings, Json
from raypeft.core.spec_fields import (
    Allowed,
    Count,
    Cpus,
    FourSeeds,
    Gpus,
    Labels,
    Limit,
    Line,
    Name,
    OrString,
    Seed,
    Settings,
    Share,
    Size,
    Tolerance,
    Whole,
    last_component,
)
from raypeft.core.spec_notify import NotifySection
from raypeft.core.spec_schedule import ScheduleSection as ScheduleSection
from raypeft.core.spec_statistics import StatisticsSection

DEFAULT_SEEDS = (0, 1234, 1234, 1234)
"""lm-eval's own: Python's `random`, numpy, torch, few-shot sampler."""

_TOLERANCES = ", ".join(f"{nats:g} in {dtype}" for dtype, nats in TOLERANCE_NATS.items())

Inherit: TypeAlias = Literal["inherit"]
"""For a task's own setting: as the sweep's `evaluation` has it. `null` would be ambiguous there,
since it is also a value (the task's own number of shots, all documents)."""


_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?]*)([^?]*)(.*)")
"""Scheme and bucket, path, and the options that pyarrow takes after a question mark."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AdapterEntry(_Section):
    """An adapter of a base, or before the sweep is expanded a pattern or folder of them."""

    path: Line = Field(
        description="Folder of one adapter, folder of adapter folders, glob pattern of adapter "
        "folders, or hub id `org/name`. Relative to the working directory."
    )
    revision: Line | None = Field(
        default=None, description="Hub revision of the adapter; only for a hub id."
    )
    name: Name | None = Field(
        default=None,
        description="Its name in the tables; the last component of its path by default. An entry "
        "with a name is exactly one adapter and is never expanded.",
    )
    allow_pickle: bool = Field(
        default=False,
        description="Whether weights in `.bin` files, which are pickled, may be loaded.",
    )
    any_base: bool = Field(
        default=False,
        description="Whether it is evaluated although its config names another base as the one it "
        "was trained on.",
    )
    merge: bool = Field(
        default=False,
        description="Whether it is merged into a copy of the base's weights, as it would be for "
        "serving. What that costs in this dtype is measured and reported.",
    )
    tokenizer: Literal["base", "own"] = Field(
        default="base",
        description="Whose tokenizer and chat template it is given: the base's, or those in its "
        "own folder. A gain is computed only where both are the same.",
    )

    @property
    def table_name(self) -> str:
        """Its name in the tables, whether given or by default."""
        return last_component(self.path) if self.name is None else self.name


class Base(_Section):
    """A base model and the adapters that are evaluated on it."""

    path: Line = Field(description="Folder or hub id of the base model.")
    name: Name = Field(
        default_factory=str,  # empty only where the path is wrong too
        description="Its name in the tables; the last component of its path by default.",
    )
    revision: Line | None = Field(
        default=None, description="Hub revision of the base; only for a hub id."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of the weights; `auto` takes the base's own."
    )
    quantization: Literal["bnb-8bit", "bnb-4bit"] | None = Field(
        default=None,
        description="Quantisation of the weights with bitsandbytes, computing in `dtype`; "
        "`bnb-4bit` is nf4 with double quantisation. null is none. Needs a GPU.",
    )
    tokenizer: Line | None = Field(
        default=None, description="Folder or hub id of another tokenizer; null is the base's own."
    )
    trust_remote_code: bool = Field(
        default=False, description="Whether Python code that comes with the base may run."
    )
    attn_implementation: Line | None = Field(
        default=None,
        description="Attention implementation as transformers names it; null is the model's own.",
    )
    max_length: Count | None = Field(
        default=None, description="Longest row in tokens; null is the model's own limit."
    )
    add_bos_token: bool | None = Field(
        default=None,
        description="Whether prompts begin with the BOS token; null leaves it to the tokenizer.",
    )
    adapters: Annotated[
        tuple[
            Annotated[
                AdapterEntry,
                OrString("path", "Folder, glob pattern or hub id of adapters."),
                Allowed("a path, pattern or hub id, or a mapping with the key `path`"),
            ],
            ...,
        ],
        Strict(False),
        Allowed("a list of adapters: paths, patterns, hub ids, or mappings with the key `path`"),
    ] = Field(
        default=(),
        description="Its adapters: folders, glob patterns, hub ids. The base alone is always "
        "evaluated too.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_by_default(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "name" not in data:
            path = data.get("path")
            if isinstance(path, str) and path.strip():
                return {**data, "name": last_component(path) or path}
        return data

    def subject_id(self, adapter: AdapterEntry | None = None) -> str:
        """Return the id of a subject: this base's name, or `base/adapter`."""
        return self.name if adapter is None else f"{self.name}/{adapter.table_name}"


class TaskEntry(_Section):
    """A task, group or tag of lm-eval, with its own settings where they differ."""

    name: Line = Field(description="Name of a task, group or tag of lm-eval or `include_path`.")
    num_fewshot: Whole | Inherit | None = Field(
        default="inherit",
        description="Shots per prompt; null is the task's own number; `inherit` is as in "
        "`evaluation`.",
    )
    limit: Limit | Inherit | None = Field(
        default="inherit",
        description="Documents per task, or a share of them below 1; null is all; `inherit` is "
        "as in `evaluation`.",
    )
    gen_kwargs: Settings | Inherit | None = Field(
        default="inherit",
        description="Generation settings that override the task's own; they take the place of "
        "those in `evaluation` as a whole; null is none; `inherit` is as in `evaluation`.",
    )
    cluster: Line | None = Field(
        default=None,
        description="Field of the documents whose value some of them share, for instance that of a "
        "passage: they are drawn as one when uncertainty is computed. Dots lead into nested "
        "fields. null takes every document for itself.",
    )


class Evaluation(_Section):
    """How tasks are evaluated; the same for the base and all its adapters."""

    num_fewshot: Whole | None = Field(
        default=None, description="Shots per prompt; null is each task's own number."
    )
    limit: Limit | None = Field(
        default=None, description="Documents per task, or a share of them below 1; null is all."
    )
    seed: Seed | FourSeeds | None = Field(
        default=None,
        description="One seed for everything, or four: Python's random, numpy, torch, few-shot "
        "sampler. null is lm-eval's own: 0, 1234, 1234, 1234.",
    )
    apply_chat_template: Annotated[
        bool | Line, Allowed("true, false, or the name of a chat template")
    ] = Field(
        default=False,
        description="Whether prompts pass through the tokenizer's chat template, or the name of "
        "one of its templates.",
    )
    system_instruction: str | None = Field(
        default=None, description="System text in front of every prompt."
    )
    fewshot_as_multiturn: bool | None = Field(
        default=None,
        description="Whether shots are turns of a conversation. null is as `lm_eval` has it on "
        "the command line: true with a chat template, false without.",
    )
    gen_kwargs: Settings | None = Field(
        default=None, description="Generation settings that override every task's own."
    )
    bootstrap_iters: Whole = Field(
        default=100_000,
        description="Resamples for lm-eval's standard error of metrics without a closed form.",
    )
    confirm_run_unsafe_code: bool = Field(
        default=False, description="Whether tasks may execute code that a model wrote."
    )

    @property
    def seeds(self) -> tuple[int, int, int, int]:
        """The four seeds: Python's random, numpy, torch, few-shot sampler."""
        if self.seed is None:
            return DEFAULT_SEEDS
        python, numpy, torch, fewshot = (
            (self.seed,) * 4 if isinstance(self.seed, int) else self.seed
        )
        return python, numpy, torch, fewshot


class VLLMSection(_Section):
    """Settings of the vllm engine. What is null is left to raypeft or vLLM."""

    gpu_memory_utilization: Share | None = Field(
        default=None,
        description="Share of a GPU's memory that vLLM takes; null is vLLM's own (0.92).",
    )
    max_num_seqs: Count | None = Field(
        default=None, description="Requests in one batch at most; null is vLLM's own."
    )
    enforce_eager: bool | None = Field(
        default=None,
        description="Whether CUDA graphs are left out: a quicker start and slower generation; "
        "null leaves it to raypeft.",
    )
    block_size: Count | None = Field(
        default=None,
        description="Tokens in a block of the prefix cache; null is vLLM's own (16 on GPUs, 128 "
        "on CPUs).",
    )
    kv_cache_memory_bytes: Count | None = Field(
        default=None,
        description="Memory for keys and values, in bytes; null is what `gpu_memory_utilization` "
        "leaves.",
    )
    batch_invariant: bool = Field(
        default=False,
        description="Whether vLLM computes a request alike whatever stands beside it; slower, "
        "and part of a cell's identity.",
    )
    certificate_documents: Whole = Field(
        default=4,
        description="Documents that hf answers too, to prove vLLM's answers for each adapter; 0 "
        "proves nothing.",
    )
    certificate_tolerance_nats: Tolerance | None = Field(
        default=None,
        description="Largest difference between hf and vllm, in nats, up to which an adapter "
        f"stays with vllm; null is {_TOLERANCES}.",
    )

    def options(self) -> dict[str, Json]:
        """Return what an engine is told; what is null stays out."""
        values = self.model_dump(exclude={"certificate_documents", "certificate_tolerance_nats"})
        return {name: value for name, value in values.items() if value is not None}

    def tolerance_nats(self, dtype: str) -> float:
        """Return how far hf and vllm may be apart on a base of this dtype."""
        asked = self.certificate_tolerance_nats
        return TOLERANCE_NATS[dtype] if asked is None else asked


class EngineSection(_Section):
    """Which engine answers, and with which numerics."""

    kind: Literal["auto", "hf", "vllm", "fake"] = Field(
        default="auto",
        description="Engine; `auto` takes vllm where it is installed and there is a GPU, for "
        "every adapter that it can do, else hf. `fake` answers from a script, for tests.",
    )
    batch_size: Count = Field(
        default=8, description="Rows per forward pass where contexts are not shared."
    )
    sharing: bool = Field(
        default=True,
        description="Whether the choices of a document share its context, and documents their "
        "common shots, where the model computes that exactly: several times faster, and equal to "
        "lm-eval within rounding. false is lm-eval's own batches, and its numbers bit for bit.",
    )
    batch_tokens: Count | Literal["auto"] = Field(
        default="auto",
        description="Tokens per forward pass where contexts are shared; `auto` chooses by model "
        "and device.",
    )
    softmax_dtype: Literal["float32", "model"] = Field(
        default="float32",
        description="dtype of the log-softmax; `model` computes it in the model's own, as lm-eval "
        "does.",
    )
    options: Settings = Field(
        default_factory=dict, description="The script of the `fake` engine; no other takes any."
    )
    vllm: VLLMSection = Field(
        default_factory=VLLMSection, description="Settings of the vllm engine alone."
    )


class HardwareSection(_Section):
    """What one slot is pinned to."""

    gpus: Gpus | None = Field(
        default=None,
        description="GPUs of a slot; a share below 1 puts several slots on one GPU; null is 1 "
        "where the cluster has GPUs, else 0.",
    )
    accelerator: Line | None = Field(
        default=None, description="Accelerator that a slot must have, for instance `H100`."
    )
    labels: Labels = Field(
        default_factory=dict,
        description="Labels that a slot's node must have in Ray, for instance "
        "`{raypeft/hw: a100-80}`, which tells apart what Ray's accelerator types do not; a value "
        "may be `x`, `!x`, `in(x,y)` or `!in(x,y)`.",
    )
    cpus: Cpus = Field(default=1, description="CPU cores of a slot.")
    memory: Size | None = Field(
        default=None, description='Host memory of a slot, for instance "8GiB"; null reserves none.'
    )
    tensor_parallel: Count = Field(
        default=1,
        description="GPUs that hold one base together; above 1 only with `engine.kind: vllm`.",
    )
    device_memory: Size | None = Field(
        default=None,
        description='Memory of one device of a slot, for instance "80GiB": a base whose weights '
        "are more is refused before the run. null is what is known of `accelerator` or was "
        "measured before.",
    )
    gpus_per_node: Count | None = Field(
        default=None,
        description="GPUs of a node, where `tensor_parallel` is more: a base is then held by "
        "several nodes, through Ray. null is one node for each slot.",
    )
    allow_mixed: bool = Field(
        default=False,
        description="Whether a gain may compare answers from different hardware; it is flagged.",
    )

    @property
    def spans_nodes(self) -> bool:
        """Whether one base is held by several nodes."""
        return self.gpus_per_node is not None and self.tensor_parallel > self.gpus_per_node

    @property
    def device_memory_bytes(self) -> int | None:
        """Memory of one device, if the sweep says it."""
        return None if self.device_memory is None else size_bytes(self.device_memory)

    @property
    def memory_bytes(self) -> int | None:
        """Host memory of a slot, or None to reserve none."""
        return None if self.memory is None else size_bytes(self.memory)


class Sweep(_Section):
    """What to evaluate, how, and where the results go."""

    name: Name = Field(
        default="sweep", description="Its name; the file's name without its ending by default."
    )
    output: Line = Field(
        description="Folder or URI (s3://, gs://) for this sweep's tables, report and journal."
    )
    store: Line = Field(
        default_factory=str,  # empty only where the output is wrong too
        description="Folder or URI for request sets and answers, shared between sweeps; `store` "
        "beside `output` by default.",
    )
    bases: Annotated[
        tuple[
            Annotated[
                Base,
                OrString("path", "Folder or hub id of a base that is evaluated alone."),
                Allowed("a path or hub id, or a mapping with the key `path`"),
            ],
            ...,
        ],
        Strict(False),
        Allowed("a list of one or more bases: paths, hub ids, or mappings with the key `path`"),
    ] = Field(min_length=1, description="The base models, each with its adapters.")
    tasks: Annotated[
        tuple[
            Annotated[
                TaskEntry,
                OrString("name", "Name of a task, group or tag."),
                Allowed("a task's name, or a mapping with the key `name`"),
            ],
            ...,
        ],
        Strict(False),
        Allowed("a list of one or more tasks: names, or mappings with the key `name`"),
    ] = Field(min_length=1, description="What every base and adapter is evaluated on.")
    include_path: Annotated[
        tuple[Line, ...], Strict(False), Allowed("a list of folders with task files")
    ] = Field(
        default=(),
        description="Folders with your own task files. Relative to the working directory.",
    )
    evaluation: Evaluation = Field(
        default_factory=Evaluation, description="How tasks are evaluated."
    )
    engine: EngineSection = Field(
        default_factory=EngineSection, description="Which engine answers."
    )
    hardware: HardwareSection = Field(
        default_factory=HardwareSection, description="What one slot is pinned to."
    )
    schedule: ScheduleSection = Field(
        default_factory=ScheduleSection, description="How the work is spread."
    )
    statistics: StatisticsSection = Field(
        default_factory=StatisticsSection, description="How gains are judged."
    )
    notify: NotifySection = Field(
        default_factory=NotifySection, description="Who is told when a run is over."
    )

    @model_validator(mode="before")
    @classmethod
    def _store_by_default(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "store" not in data:
            output = data.get("output")
            if isinstance(output, str) and output.strip():
                return {**data, "store": _store_beside(output)}
        return data

    def settings(self, task: TaskEntry) -> EvaluationSettings:
        """Return what one task entry is frozen and scored under."""
        common = self.evaluation
        multiturn = common.fewshot_as_multiturn
        python, numpy, torch, fewshot = common.seeds
        return EvaluationSettings(
            num_fewshot=_own(task.num_fewshot, common.num_fewshot),
            limit=_own(task.limit, common.limit),
            gen_kwargs=_own(task.gen_kwargs, common.gen_kwargs),
            apply_chat_template=common.apply_chat_template,
            system_instruction=common.system_instruction,
            fewshot_as_multiturn=(
                bool(common.apply_chat_template) if multiturn is None else multiturn
            ),
            random_seed=python,
            numpy_seed=numpy,
            torch_seed=torch,
            fewshot_seed=fewshot,
            bootstrap_iters=common.bootstrap_iters,
            confirm_run_unsafe_code=common.confirm_run_unsafe_code,
        )


def _own(value: Json, common: Json) -> Json:
    return common if value == "inherit" else value


def _store_beside(output: str) -> str:
    """Return `store` beside an output, or inside it where it has no parent to speak of."""
    uri = _URI.fullmatch(output)
    root, path, query = uri.groups() if uri else ("", output, "")
    parent, slash, last = path.rstrip("/").rpartition("/")
    folder = path.rstrip("/") + "/" if last in {"", ".", ".."} else parent + slash
    return f"{root}{folder}store{query}"
