"""Tasks → request sets: lm-eval builds every prompt once, and all of it is kept.

lm-eval alone decides prompts. Decided here is under which seeds and settings it builds them, and
that a task which fails is a named failure and not an exception: the other tasks go on. What is kept
of a built task, and what cannot be, is left to `requests.py`.

A task entry is frozen as if it were evaluated alone by a fresh `simple_evaluate`: seeds are set
once, then its tasks are built in order. Tasks that draw from the global `random` therefore come
out the same in every process, whatever ran before them.
"""

import json
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.utils import handle_non_serializable

from raypeft.core.identity import request_set_digest
from raypeft.core.records import (
    EvaluationSettings,
    Failure,
    FailureKind,
    Frozen,
    Json,
    RequestSet,
)
from raypeft.errors import CellError, Problem, SpecError
from raypeft.harness.codec import UnfreezableError, freeze_json
from raypeft.harness.groups import freeze_groups
from raypeft.harness.index import UnknownTaskError
from raypeft.harness.process import lm_eval_process, seed_everything
from raypeft.harness.requests import freeze_documents, freeze_requests
from raypeft.harness.tasks import Leaf, Loaded, apply_overrides, load_entry, refuse

LM_EVAL_VERSION = version("lm_eval")


class ChatTemplate(Protocol):
    """Turns a conversation into a prompt; given by the caller, who has the tokenizer."""

    @property
    def digest(self) -> str:
        """Digest of tokenizer and template, as it enters the request set's digest."""
        ...

    @property
    def name(self) -> str:
        """The template's name, for messages."""
        ...

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, as lm-eval's models have it."""
        ...

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt, as lm-eval's models do."""
        ...


def freeze_entry(
    entry: str,
    settings: EvaluationSettings,
    *,
    include_path: Sequence[str] = (),
    chat: ChatTemplate | None = None,
    only: Collection[str] = (),
) -> Frozen:
    """Freeze one task entry of a sweep.

    Args:
        entry: A task, group or tag name, or the path of a YAML file.
        settings: What it is frozen under.
        include_path: Folders of own tasks; they override lm-eval's own, later ones earlier ones.
        chat: The chat template, if the settings apply one.
        only: Leaf tasks to try, to learn whether they can be built by now; all if empty. What a
            part gives is no substitute for the whole: tasks that draw from the global `random`
            come out otherwise without those before them.

    Returns:
        The request sets of all leaf tasks that could be frozen, the groups, and for each other
        leaf task (or the entry, if it could not be resolved) why not.

    Raises:
        SpecError: If the settings apply a chat template and none is given.
    """
    if settings.apply_chat_template and chat is None:
        problem = Problem("apply_chat_template", "is set, but the tokenizer has no chat template")
        raise SpecError((problem,))
    with lm_eval_process(settings):
        try:
            allow_unsafe = settings.confirm_run_unsafe_code
            loaded = load_entry(entry, include_path, allow_unsafe=allow_unsafe)
        except UnknownTaskError as error:
            return Frozen(entry=entry, failures={entry: Failure(FailureKind.SPEC, str(error))})
        except Exception as error:  # noqa: BLE001 - an entry's failure is a value
            return Frozen(entry=entry, failures={entry: _failure(entry, error)})
        # Reading configurations imports the tasks' Python, once per process: what that draws from
        # the random state must not depend on whether it was imported before.
        seed_everything(settings)
        if only:
            leaves = {name: leaf for name, leaf in loaded.leaves.items() if name in only}
            loaded = replace(loaded, leaves=leaves)
        return _freeze_loaded(entry, loaded, settings, chat)


def _freeze_loaded(
    entry: str, loaded: Loaded, settings: EvaluationSettings, chat: ChatTemplate | None
) -> Frozen:
    failures: dict[str, Failure] = {}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - a task's failure is a value
            failures[name] = _failure(name, error)
            return None

    # First build all, then draw all prompts, as lm-eval does.
    built = {
        name: attempt(name, partial(_build, leaf, settings)) for name, leaf in loaded.leaves.items()
    }
    request_sets = [
        attempt(name, partial(_freeze_task, entry, name, task, settings, chat))
        for name, task in built.items()
        if task is not None
    ]
    if not loaded.leaves:
        failures[entry] = Failure(FailureKind.TASK_FAILED, f"'{entry}' holds no task")
    return Frozen(
        entry=entry,
        request_sets=tuple(found for found in request_sets if found is not None),
        groups=freeze_groups(loaded.groups),
        failures=failures,
    )


def _build(leaf: Leaf, settings: EvaluationSettings) -> Any:
    """Build a leaf task and apply the overrides."""
    made: list[Any] = []

    def remembered(task_class: Any) -> Any:
        # The half-built object tells more than the exception does.
        if not isinstance(task_class, type):
            return task_class
        task: Any = object.__new__(task_class)
        made.append(task)

        def initialised(**kwargs: Any) -> Any:
            task.__init__(**kwargs)
            return task

        return initialised

    try:
        task = leaf.build(remembered)
    except Exception as error:
        docs = getattr(made[0], "task_docs", None) if made else None
        if docs is not None and len(docs) == 0:
            raise CellError(
                FailureKind.TASK_FAILED, "its evaluation split holds no documents"
            ) from error
        raise
    unsafe, multimodal = getattr(task, "UNSAFE_CODE", False), getattr(task, "MULTIMODAL", False)
    refuse(unsafe and not settings.confirm_run_unsafe_code, multimodal)
    _refuse_missing_metrics(task)
    apply_overrides(task, settings)
    return task


def _refuse_missing_metrics(task: Any) -> None:
    """Find a metric that lm-eval could not load now, and not after the night's answers.

    Only generated text is scored by metric functions; for log-likelihoods lm-eval has the formulas
    in place and needs no more than the names.
    """
    metrics = getattr(task, "_metric_fn_list", {})
    if task.OUTPUT_TYPE != "generate_until" or task.get_config("process_results") is not None:
        return
    missing = sorted(name for name, function in metrics.items() if function is None)
    if missing:
        raise CellError(
            FailureKind.TASK_FAILED,
            f"lm-eval could not load its metric {', '.join(missing)} "
            "(metrics of the evaluate library are downloaded on first use)",
        )


def _freeze_task(
    entry: str, name: str, task: Any, settings: EvaluationSettings, chat: ChatTemplate | None
) -> RequestSet:
    docs = _draw_prompts(task, settings, chat)
    instances: list[Instance] = task.instances
    requests = freeze_requests(instances)
    documents = freeze_documents(instances, docs, task.doc_to_target)
    config = dict(task.dump_config())
    output_type = str(task.OUTPUT_TYPE or task.get_config("output_type"))
    tokenizer_digest = chat.digest if settings.apply_chat_template and chat is not None else ""
    digest = request_set_digest(
        task=name,
        version=str(task.VERSION),
        output_type=output_type,
        requests=requests,
        documents=documents,
        tokenizer_digest=tokenizer_digest,
    )
    return RequestSet(
        digest=digest,
        task=name,
        entry=entry,
        output_type=output_type,
        version=str(task.VERSION),
        num_fewshot=int(config.get("num_fewshot", 0)),
        num_docs=len(task.eval_docs),
        settings=settings,
        config=json.loads(json.dumps(config, default=handle_non_serializable)),
        requests=requests,
        documents=documents,
        tokenizer_digest=tokenizer_digest,
        lm_eval_version=LM_EVAL_VERSION,
    )


def _draw_prompts(
    task: Any, settings: EvaluationSettings, chat: ChatTemplate | None
) -> dict[int, tuple[Any, Json]]:
    """Let the task build its requests; return each document, as an object and frozen.

    Documents are frozen at the moment the task gets them: tasks that shuffle or change them give
    others at the next access.
    """
    seen: dict[int, tuple[Any, Json]] = {}
    iterate = task.doc_iterator

    def recorded(**kwargs: Any) -> Iterator[tuple[int, Any]]:
        for doc_id, doc in iterate(**kwargs):
            seen[doc_id] = (doc, freeze_json(doc, f"document {doc_id}"))
            yield doc_id, doc

    task.doc_iterator = recorded
    templated = chat if settings.apply_chat_template else None
    task.build_all_requests(
        limit=get_sample_size(task, settings.limit),
        rank=0,
        world_size=1,
        system_instruction=settings.system_instruction,
        apply_chat_template=bool(settings.apply_chat_template),
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
        chat_template=templated.apply_chat_template if templated else None,
        tokenizer_name=templated.tokenizer_name if templated else "",
    )
    del task.doc_iterator
    return seen


def _failure(name: str, error: Exception) -> Failure:
    """Turn what a task raised into a value that names the task."""
    detail = "".join(traceback.format_exception(error))
    if isinstance(error, CellError):
        return Failure(FailureKind(error.kind), f"task '{name}': {error.message}", detail=detail)
    if isinstance(error, UnfreezableError):
        return Failure(FailureKind.UNSUPPORTED, f"task '{name}': {error}", detail=detail)
    cause = " ".join(str(error).split()) or "no message"
    message = f"task '{name}' could not be built: {type(error).__name__}: {cause}"
    return Failure(FailureKind.TASK_FAILED, message, detail=detail)
