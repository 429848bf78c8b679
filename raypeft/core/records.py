"""The records that pass between the parts: subjects, request sets, shards, answers, failures.

Plain frozen data, free of every heavy package, so that planning, storing and testing need none.
Conversion from and to library objects happens in the package that owns the library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from raypeft.core.engine_spec import EngineKind as EngineKind
from raypeft.core.engine_spec import EngineSpec as EngineSpec
from raypeft.core.engine_spec import Json as Json
from raypeft.core.engine_spec import LoraRoom as LoraRoom
from raypeft.core.engine_spec import Quantization as Quantization
from raypeft.core.failures import Failure as Failure
from raypeft.core.failures import FailureKind as FailureKind

RequestType: TypeAlias = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]

# --- subjects ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One PEFT adapter of one base, as an engine loads it.

    Attributes:
        name: Its name in the tables.
        path: Local folder or hub id.
        digest: Digest of its weights and normalised config.
        revision: Hub revision, if any.
        peft_type: As in its config, for instance `LORA`.
        allow_pickle: Whether the sweep file allows `.bin` weights.
        merge: Whether it is merged into the weights of a copy of the base.
        tokenizer: Folder or hub id of its own tokenizer; None is the base's.
        tokenizer_digest: Digest of its own tokenizer; empty where it uses the base's.
        expects_effect: Whether it must change the model; one of zero effect must not.
        config: Its `adapter_config.json`, for the tables.
    """

    name: str
    path: str
    digest: str
    revision: str | None = None
    peft_type: str = ""
    allow_pickle: bool = False
    merge: bool = False
    tokenizer: str | None = None
    tokenizer_digest: str = ""
    expects_effect: bool = True
    config: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is evaluated: a base, alone (the baseline) or with one adapter.

    Attributes:
        id: Unique within a sweep: the base's name, or `base/adapter`; `base@tokens` is the
            baseline of adapters with a larger vocabulary.
        base: The base's name in the sweep.
        adapter: None for the baseline.
        vocab_size: Tokens to which a copy of the base is enlarged; None leaves it as it is.
        speaker: The adapter whose own tokenizer a baseline is asked with; None is the base's.
        again: Whether this is a baseline that is answered a second time, for the noise floor.
        through: The adapter of zero effect through which such a baseline is answered; None is the
            base alone.
    """

    id: str
    base: str
    adapter: Adapter | None = None
    vocab_size: int | None = None
    speaker: Adapter | None = None
    again: bool = False
    through: Adapter | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether this is the base, as far as its answers go."""
        return self.adapter is None

    @property
    def attached(self) -> Adapter | None:
        """The adapter that an engine attaches to the base for this subject."""
        return self.adapter or self.through

    @property
    def opened(self) -> Adapter | None:
        """The adapter whose files an engine opens for this subject: weights, tokenizer or both."""
        return self.attached or self.speaker

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer it is asked with; empty for the base's."""
        return "" if self.opened is None else self.opened.tokenizer_digest

    def opening(self, local: Adapter) -> "Subject":
        """Return this subject with the files it opens in another place."""
        if self.through is not None:
            return replace(self, through=local)
        if self.adapter is None:
            return replace(self, speaker=local)
        return replace(self, adapter=local)


# --- request sets -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One model call of lm-eval. A request that lm-eval repeats is several requests here.

    Attributes:
        index: Position in the request set, from 0, in lm-eval's order.
        doc_id: The document it belongs to.
        idx: lm-eval's number of the call within its document (the choice, for instance).
        repeat: 0 for the first call of an instance, up to `repeats - 1`.
        request_type: Which method of the model answers it.
        arguments: Exactly lm-eval's arguments: `(context, continuation)`, `(text,)` or
            `(context, generation settings)`.
    """

    index: int
    doc_id: int
    idx: int
    repeat: int
    request_type: RequestType
    arguments: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A document as lm-eval's task saw it when its prompts were built.

    Attributes:
        doc_id: lm-eval's number.
        doc: The document after the task's own processing.
        target: `doc_to_target(doc)`.
        doc_hash: lm-eval's hash of the document.
        target_hash: lm-eval's hash of the target.
    """

    doc_id: int
    doc: Json
    target: Json
    doc_hash: str
    target_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """The evaluation settings one task is frozen and scored under, as `simple_evaluate` has them.

    Attributes:
        num_fewshot: None leaves the task's own number.
        limit: Documents per task; a float below 1 is a share; None is all.
        gen_kwargs: Overrides of the generation settings; None leaves the task's own.
        apply_chat_template: False, True, or a template's name.
        system_instruction: System text, if any.
        fewshot_as_multiturn: Whether shots are turns of a conversation.
        random_seed: Seed of Python's `random` while tasks are built.
        numpy_seed: Seed of numpy.
        torch_seed: Seed of torch.
        fewshot_seed: Seed of the few-shot sampler.
        bootstrap_iters: Resamples for lm-eval's stderr of metrics without a closed form.
        confirm_run_unsafe_code: Whether the sweep allows tasks that execute generated code.
    """

    num_fewshot: int | None = None
    limit: int | float | None = None
    gen_kwargs: Mapping[str, Json] | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    random_seed: int = 0
    numpy_seed: int = 1234
    torch_seed: int = 1234
    fewshot_seed: int = 1234
    bootstrap_iters: int = 100_000
    confirm_run_unsafe_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSet:
    """Every model call lm-eval makes for one task under one evaluation setting, frozen.

    Attributes:
        digest: See `raypeft.core.identity.request_set_digest`.
        task: Name of the leaf task.
        entry: The sweep's task entry that brought it (a task, group or tag name).
        output_type: lm-eval's output type of the task.
        version: The task's version.
        num_fewshot: What lm-eval reports as n-shot.
        num_docs: Documents in the task before `limit`.
        settings: What it was frozen under.
        config: The task's configuration as lm-eval dumps it.
        requests: All of them, by index.
        documents: All of them, by doc_id; empty in the copy that travels to a slot.
        tokenizer_digest: Tokenizer and chat template; empty if no template was applied, since
            the requests then do not depend on it.
        lm_eval_version: The version that built it.
    """

    digest: str
    task: str
    entry: str
    output_type: str
    version: str
    num_fewshot: int
    num_docs: int
    settings: EvaluationSettings
    config: Mapping[str, Json]
    requests: tuple[Request, ...]
    documents: tuple[Document, ...]
    tokenizer_digest: str = ""
    lm_eval_version: str = ""

    def for_slot(self) -> "RequestSet":
        """Return the copy an engine needs: no documents, no targets."""
        return replace(self, documents=(), config={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group of lm-eval, kept so that it can be scored again from its tasks' results.

    Attributes:
        name: Its name.
        children: Names of its direct members, tasks or groups.
        alias: Display name, if any.
        aggregate_metric_list: lm-eval's aggregation settings, each as a dict; empty: a container.
        metadata: lm-eval's metadata, version among it.
    """

    name: str
    children: tuple[str, ...]
    alias: str | None = None
    aggregate_metric_list: tuple[Mapping[str, Json], ...] = ()
    metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What freezing one task entry of a sweep gave.

    Attributes:
        entry: The task entry's name in the sweep.
        request_sets: One for each leaf task.
        groups: The groups met on the way, bottom-up or not.
        failures: By leaf task, or by entry if it could not be loaded at all.
    """

    entry: str
    request_sets: tuple[RequestSet, ...] = ()
    groups: tuple[Group, ...] = ()
    failures: Mapping[str, Failure] = field(default_factory=dict)


# --- answers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shard:
    """A slice of a request set: the `index`-th of `count` parts.

    Which requests it holds is the engine's business (whole batches, so that no answer depends on
    how many shards there are); the union over `index` is every request exactly once.
    """

    request_set: RequestSet
    index: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What a subject says to one request.

    Attributes:
        index: The request's index.
        logprob: For log-likelihoods, in nats; None for generation.
        is_greedy: For `loglikelihood`: whether greedy decoding gives the continuation.
        text: For generation.
    """

    index: int
    logprob: float | None = None
    is_greedy: bool | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectAnswers:
    """One subject's answers to one shard, or why there are none.

    Attributes:
        subject: The subject's id.
        answers: One for each request of the shard, sorted by index; empty on failure.
        failure: Why this subject could not answer. Others of the unit are not touched by it.
        tokens: Tokens that went through the model.
        seconds: Time spent on this subject.
        path: Which way was taken: `<shared context | plain>[, lane <lane>][: <notes>]`, for
            instance `plain, lane isolated: the sweep file says so`. The lanes are those of
            `raypeft.core.routing`; the base alone has none.
    """

    subject: str
    answers: tuple[Answer, ...] = ()
    failure: Failure | None = None
    tokens: int = 0
    seconds: float = 0.0
    path: str = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What really answered, read back in the slot.

    Attributes:
        fingerprint: Digest of the fields that change numerics: device names, memory, capability,
            driver, processor, thread count. Equal fingerprints may be compared.
        device: For instance `NVIDIA H100 80GB HBM3` or the processor's name.
        num_devices: Accelerators visible to the slot.
        memory_gib: Memory of one accelerator, or of the machine on a CPU.
        threads: Threads torch uses on the CPU.
        node: The machine's name; not part of the fingerprint.
        software: Versions of the packages that compute (torch, transformers, peft, vllm, …).
    """

    fingerprint: str
    device: str
    num_devices: int = 0
    memory_gib: float = 0.0
    threads: int = 1
    node: str = ""
    software: Mapping[str, str] = field(default_factory=dict)


# --- scores -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One aggregated metric of one task or group, as lm-eval computed it.

    Attributes:
        metric: lm-eval's metric name.
        filter: lm-eval's filter name, `none` if the task has no filter.
        value: The aggregate; None where lm-eval's value is no number (then see `value_json`).
        value_json: lm-eval's value as JSON text, exactly.
        stderr: lm-eval's standard error; None where it gives `N/A`.
        n: Documents it was computed from.
        higher_is_better: Direction; None where lm-eval does not say.
        aggregation: Name of lm-eval's aggregation (`mean`, `weighted_perplexity`, …).
    """

    metric: str
    filter: str
    value: float | None
    value_json: str
    stderr: float | None
    n: int
    higher_is_better: bool | None
    aggregation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One document under one filter, scored.

    Attributes:
        doc_id: The document.
        filter: lm-eval's filter name.
        responses: `resps`: for each call of the document the list of its raw responses.
        filtered_responses: `filtered_resps`.
        metrics: Per-document values by metric; a value may be a float, bool, pair, vector or list.
        doc_hash: lm-eval's hash of the document.
        prompt_hash: lm-eval's hash of the first call's context.
        target_hash: lm-eval's hash of the target.
    """

    doc_id: int
    filter: str
    responses: Json
    filtered_responses: Json
    metrics: Mapping[str, Json]
    doc_hash: str
    prompt_hash: str
    target_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What scoring one cell gave.

    Attributes:
        task: The leaf task.
        metrics: Aggregates.
        samples: By doc_id, then filter, in lm-eval's order.
        lm_eval: lm-eval's own results for this task, without samples (JSON value).
        lm_eval_version: The version that scored it.
    """

    task: str
    metrics: tuple[MetricValue, ...]
    samples: tuple[Sample, ...]
    lm_eval: Json
    lm_eval_version: str


# --- work -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitAnswers:
    """What a slot gives back for one unit.

    Attributes:
        subjects: In the unit's order.
        hardware: What answered, read back in the slot.
        seconds: Wall time in the slot, loading aside.
        row_limits: Most tokens at once by length of the prefix, learnt so far; may be empty.
    """

    subjects: tuple[SubjectAnswers, ...]
    hardware: Hardware
    seconds: float
    row_limits: Mapping[int, int] = field(default_factory=dict)
