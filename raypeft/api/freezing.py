"""Freezing a sweep's tasks: which are in the store already, and building those that are not.

One freeze per task entry and setting serves every base, unless a chat template is applied: then
the prompts depend on the tokenizer, and each tokenizer gets its own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from raypeft.api.own_tasks import own_task_digests
from raypeft.api.sweeps import Resolved
from raypeft.core.cost import Work, asks_for_sampling, work_of
from raypeft.core.identity import digest, freeze_key
from raypeft.core.records import (
    EvaluationSettings,
    Failure,
    FailureKind,
    Frozen,
    Group,
    RequestSet,
)
from raypeft.engines.bases import tokenizer_digest
from raypeft.errors import CellError, Problem, SpecError, StoreError
from raypeft.runtime.calls import call_all
from raypeft.runtime.ports import Pool
from raypeft.runtime.work import ChatSource, freeze
from raypeft.store.store import Store

SCORING_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenTask:
    """One leaf task of a sweep, frozen or failed.

    Attributes:
        entry: The sweep's task entry.
        name: The leaf task; the entry where its tasks are not known.
        failure: Why it could not be frozen.
        digest: Digest of its request set.
        tokens: Estimated tokens through the model for one subject.
        work: How much it is for one subject.
        samples: Whether any request asks for sampled generation.
        num_requests: Requests in the set.
        num_documents: Documents that they are about.
        lm_eval_version: What scores it.
        bootstrap_iters: As in its settings.
        scoring: Digest of what decides its numbers beside lm-eval: its configuration (metrics,
            filters) and own Python.
    """

    entry: str
    name: str
    failure: Failure | None = None
    digest: str = ""
    tokens: int = 0
    work: Work = field(default_factory=Work)
    samples: bool = False
    num_requests: int = 0
    num_documents: int = 0
    lm_eval_version: str = ""
    bootstrap_iters: int = 0
    scoring: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeJob:
    """One freeze that a sweep needs.

    Attributes:
        key: What it is stored under.
        entry: The task entry.
        settings: What it is frozen under.
        chat: Whose chat template is applied; None applies none.
        bases: The bases it serves, and the subjects whose own chat template it applies.
        failure: Why it cannot even be tried.
    """

    key: str
    entry: str
    settings: EvaluationSettings
    chat: ChatSource | None
    bases: tuple[str, ...]
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSweep:
    """The frozen tasks of a sweep.

    Attributes:
        by_base: For each base its leaf tasks, in the sweep's order; and for each subject (its id)
            whose own chat template was applied.
        groups: For each base the groups of each entry.
        headers: For each digest this sweep's own request set, without requests and documents:
            another sweep may have stored the same requests under other scoring settings.
        missing: Entries that are not frozen yet, when nothing was to be built.
    """

    by_base: Mapping[str, tuple[FrozenTask, ...]]
    groups: Mapping[str, Mapping[str, tuple[Group, ...]]]
    headers: Mapping[str, RequestSet] = field(default_factory=dict)
    missing: tuple[FreezeJob, ...] = field(default=())

    def tasks(self, subject: str, base: str) -> tuple[FrozenTask, ...]:
        """Return the leaf tasks of one subject: its own, or those of its base."""
        return self.by_base.get(subject, self.by_base[base])

    def task(self, subject: str, base: str, name: str) -> FrozenTask:
        """Return one leaf task of a subject."""
        return next(task for task in self.tasks(subject, base) if task.name == name)

    def num_requests(self, digest: str) -> int:
        """Return how many requests a request set of this sweep has, without reading it."""
        tasks = (task for tasks in self.by_base.values() for task in tasks)
        return next(task.num_requests for task in tasks if task.digest == digest)

    def request_set(self, store: Store, digest: str) -> RequestSet:
        """Return a request set of this sweep, documents and all.

        Raises:
            StoreError: If it is not in the store any more.
        """
        content = store.get_request_set(digest)
        if content is None:
            raise StoreError(
                f"{store.place}/requests/{digest}.parquet",
                "is missing or damaged",
                "start the sweep again: it is built anew",
            )
        header = self.headers[digest]
        return replace(header, requests=content.requests, documents=content.documents)


def freeze_jobs(resolved: Resolved, store: Store) -> list[FreezeJob]:
    """Return the freezes a sweep needs, each once.

    Raises:
        SpecError: If own task files are absent and unknown to the store.
    """
    sweep = resolved.sweep
    include = own_task_digests(sweep, store).whole
    jobs: dict[str, FreezeJob] = {}
    for task in sweep.tasks:
        settings = sweep.settings(task)
        for name in _speakers(resolved):
            if settings.apply_chat_template and _base_of(resolved, name) not in resolved.bases:
                continue  # its tokenizer cannot be read either; its cells have failed already
            chat = _chat(resolved, name, settings)
            try:
                tokenizer = "" if chat is None else tokenizer_digest(chat.path, chat.revision)
            except CellError as error:
                failure = Failure(FailureKind(error.kind), error.message)
                job = FreezeJob(
                    key=f"failed {name} {task.name}",
                    entry=task.name,
                    settings=settings,
                    chat=chat,
                    bases=(name,),
                    failure=failure,
                )
                jobs[job.key] = job
                continue
            key = freeze_key(
                entry=task.name,
                settings=settings,
                tokenizer_digest=tokenizer,
                include_digest=include,
                lm_eval_version=version("lm_eval"),
            )
            bases = (*jobs[key].bases, name) if key in jobs else (name,)
            jobs[key] = FreezeJob(
                key=key, entry=task.name, settings=settings, chat=chat, bases=bases
            )
    return list(jobs.values())


def freeze_sweep(
    resolved: Resolved,
    store: Store,
    *,
    pool: Pool | None,
    say: Callable[[str], None] = lambda text: None,
) -> FrozenSweep:
    """Return a sweep's frozen tasks, building those that the store does not have.

    What is built is stored as soon as it is there; freezes with failures are built again in the
    next run, since a dataset may have been out of reach.

    Args:
        resolved: The sweep and what it names.
        store: Where request sets lie.
        pool: Where lm-eval builds what is missing; None builds nothing.
        say: Told what is going on.

    Raises:
        SpecError: If tasks were built and not one could be.
    """
    jobs = freeze_jobs(resolved, store)
    found: dict[str, Frozen] = {}
    for job in jobs:
        if job.failure is not None:
            found[job.key] = Frozen(entry=job.entry, failures={job.entry: job.failure})
        elif (frozen := store.get_frozen(job.key)) is not None:
            found[job.key] = frozen
    missing = [job for job in jobs if job.key not in found]
    for job in missing if pool is None else ():
        # What was built of it is good; what was not is tried when there is a pool.
        if (old := store.get_frozen(job.key, partial=True)) is not None:
            found[job.key] = old
    if missing and pool is not None:
        say(f"building the requests of {', '.join(sorted({job.entry for job in missing}))}")
        found.update(_build(missing, resolved, store, pool))
        missing = []
        _refuse_if_nothing(jobs, found)
    return _frozen_sweep(resolved, jobs, found, missing, store)


def _build(
    missing: Iterable[FreezeJob], resolved: Resolved, store: Store, pool: Pool
) -> dict[str, Frozen]:
    """Build freezes, each stored as soon as it is there.

    Of a freeze that had failures only these are tried: as long as all of them fail again, what
    there is stands; if one can be built by now (a dataset is back), everything is built anew.
    """
    jobs = {job.key: job for job in missing}
    partial = {key: store.get_frozen(key, partial=True) for key in jobs}
    only = {key: () if old is None else _tasks_that_failed(old) for key, old in partial.items()}
    built = _call(jobs, only, resolved, pool, store)
    again: dict[str, FreezeJob] = {}
    for key, old in partial.items():
        if old is None or not only[key]:
            continue
        if built[key].request_sets:
            again[key] = jobs[key]
        else:
            built[key] = replace(old, failures=built[key].failures)
    return built | _call(again, {}, resolved, pool, store)


def _tasks_that_failed(frozen: Frozen) -> tuple[str, ...]:
    """Return the leaf tasks to try again; none where the entry itself could not be resolved."""
    return () if frozen.entry in frozen.failures else tuple(frozen.failures)


def _call(
    jobs: Mapping[str, FreezeJob],
    only: Mapping[str, tuple[str, ...]],
    resolved: Resolved,
    pool: Pool,
    store: Store,
) -> dict[str, Frozen]:
    built: dict[str, Frozen] = {}

    def keep(key: str, result: object) -> None:
        job = jobs[key]
        failed = isinstance(result, Failure)
        built[key] = (
            Frozen(entry=job.entry, failures={job.entry: result}) if failed else result  # type: ignore[dict-item,assignment]
        )
        if not only.get(key):
            store.put_frozen(key, built[key])

    include = tuple(resolved.sweep.include_path)
    calls = {
        key: (freeze, (job.entry, job.settings, include, job.chat, only.get(key, ())))
        for key, job in jobs.items()
    }
    call_all(pool, calls, on_result=keep)
    return built


def _refuse_if_nothing(jobs: Iterable[FreezeJob], found: Mapping[str, Frozen]) -> None:
    if any(frozen.request_sets for frozen in found.values()):
        return
    problems = {
        Problem(f"tasks: {job.entry}", failure.message)
        for job in jobs
        for failure in found[job.key].failures.values()
    }
    raise SpecError(tuple(sorted(problems, key=str)))


def _frozen_sweep(
    resolved: Resolved,
    jobs: Iterable[FreezeJob],
    found: Mapping[str, Frozen],
    missing: Iterable[FreezeJob],
    store: Store,
) -> FrozenSweep:
    by_base: dict[str, list[FrozenTask]] = {name: [] for name in _speakers(resolved)}
    groups: dict[str, dict[str, tuple[Group, ...]]] = {name: {} for name in by_base}
    headers: dict[str, RequestSet] = {}
    own = own_task_digests(resolved.sweep, store)
    for job in jobs:
        frozen = found.get(job.key)
        if frozen is None:
            continue
        tasks = _tasks(job, frozen, own.python)
        for request_set in frozen.request_sets:
            light = replace(request_set, requests=(), documents=())
            headers.setdefault(request_set.digest, light)
        for base in job.bases:
            new, agrees = _without_duplicates(by_base[base], tasks)
            by_base[base] += new
            # A group of members under several settings would be no group of this entry's.
            groups[base][job.entry] = frozen.groups if agrees else ()
    for base in by_base:
        by_base[base] = by_base[base] or _as_elsewhere(by_base, resolved)
    return FrozenSweep(
        by_base={base: tuple(tasks) for base, tasks in by_base.items()},
        groups=groups,
        headers=headers,
        missing=tuple(missing),
    )


def _tasks(job: FreezeJob, frozen: Frozen, python: str) -> list[FrozenTask]:
    tasks = [_task(job, request_set, python) for request_set in frozen.request_sets]
    tasks += [
        FrozenTask(entry=job.entry, name=name, failure=failure)
        for name, failure in frozen.failures.items()
    ]
    return tasks


def _task(job: FreezeJob, request_set: RequestSet, python: str) -> FrozenTask:
    # Names and where files lie decide no score; that data are the same, the documents' hashes tell.
    names = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata", "task_alias", "tag")
    config = {key: value for key, value in request_set.config.items() if key not in names}
    decides = [config, request_set.version, python]
    work = work_of(request_set)
    return FrozenTask(
        entry=job.entry,
        name=request_set.task,
        digest=request_set.digest,
        tokens=work.tokens + work.generated_tokens,
        work=work,
        samples=any(asks_for_sampling(request) for request in request_set.requests),
        num_requests=len(request_set.requests),
        num_documents=len({request.doc_id for request in request_set.requests}),
        lm_eval_version=version("lm_eval"),
        bootstrap_iters=job.settings.bootstrap_iters,
        scoring=digest("scoring", SCORING_VERSION, decides),
    )


def _without_duplicates(
    have: Iterable[FrozenTask], new: Iterable[FrozenTask]
) -> tuple[list[FrozenTask], bool]:
    """Return the tasks that are new, and whether those of both entries are the same."""
    by_name = {task.name: task for task in have}
    kept: list[FrozenTask] = []
    agrees = True
    for task in new:
        other = by_name.get(task.name)
        if other is None:
            kept.append(task)
        elif (other.digest, other.scoring) != (task.digest, task.scoring):
            agrees = False
            message = (
                f"entries {other.entry!r} and {task.entry!r} both bring task {task.name!r}, under "
                "different settings; give them the same settings, or take one out"
            )
            failure = Failure(FailureKind.SPEC, message)
            kept.append(FrozenTask(entry=task.entry, name=task.entry, failure=failure))
    return kept, agrees


def _as_elsewhere(by_base: Mapping[str, list[FrozenTask]], resolved: Resolved) -> list[FrozenTask]:
    """Return the tasks of a base without any, for the names of its failed cells."""
    other = next((tasks for tasks in by_base.values() if tasks), None)
    if other is not None:
        return [FrozenTask(entry=task.entry, name=task.name) for task in other]
    return [FrozenTask(entry=task.name, name=task.name) for task in resolved.sweep.tasks]


def _speakers(resolved: Resolved) -> list[str]:
    """Return whose prompts a sweep needs: bases, and subjects with their own chat template.

    No base has the name of a subject: `/` stands in no name.
    """
    names = [base.name for base in resolved.sweep.bases]
    if resolved.sweep.evaluation.apply_chat_template:
        names += [subject.id for subject in resolved.subjects.values() if subject.tokenizer_digest]
    return names


def _base_of(resolved: Resolved, name: str) -> str:
    return resolved.subjects[name].base


def _chat(resolved: Resolved, name: str, settings: EvaluationSettings) -> ChatSource | None:
    if not settings.apply_chat_template:
        return None
    subject = resolved.subjects[name]
    if subject.opened is not None:
        return ChatSource(
            path=subject.opened.tokenizer or subject.opened.path,
            revision=subject.opened.revision,
            template=settings.apply_chat_template,
        )
    entry = resolved.base(name)
    return ChatSource(
        path=entry.tokenizer or entry.path,
        revision=None if entry.tokenizer else entry.revision,
        trust_remote_code=entry.trust_remote_code,
        template=settings.apply_chat_template,
    )
