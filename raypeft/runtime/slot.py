"""A slot as a plain object: loads one base, then answers one unit after another.

The same class runs in a Ray actor and in this process. It turns what an engine raises into
values, so that nothing has to be unpickled to learn what went wrong; how a slot is started,
reached and stopped is the pool's business.
"""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raypeft.core.records import (
    Adapter,
    EngineSpec,
    Failure,
    Hardware,
    RequestSet,
    Shard,
    Subject,
    SubjectAnswers,
    UnitAnswers,
)
from raypeft.engines.base import Engine, Learning
from raypeft.engines.travel import LocalAdapters, content_key, reads_adapters
from raypeft.errors import CellError, EngineFatalError
from raypeft.runtime.failures import failure_from, kind_of, load_failure_from, traceback_text
from raypeft.runtime.logs import CELLS_LOGGER, about, begin_in_slot
from raypeft.runtime.ports import Bring, Build, UnitWork

_logger = logging.getLogger(CELLS_LOGGER)

MAX_REQUEST_SETS = 16
"""Request sets a slot keeps. The schedule stays on one subject and walks through the tasks, so
each comes round once for every subject."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Why a slot gave no answer.

    Attributes:
        failure: What happened.
        is_fatal: Whether the slot must not be used again.
    """

    failure: Failure
    is_fatal: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must be brought to a slot before it can answer a unit.

    Attributes:
        adapters: The content keys of adapters that its node lacks.
    """

    adapters: tuple[str, ...]


_NAMES = {UnitAnswers: "answered", Broken: "failed", Wanted: "waits for adapters"}


class Slot:
    """One loaded base.

    Args:
        spec: What to load.
        build: Loads it.
        adapters: Where adapters are on this node.
    """

    def __init__(
        self, spec: EngineSpec, build: Build, adapters: LocalAdapters | None = None
    ) -> None:
        begin_in_slot(os.environ)
        self._spec = spec
        self._build = build
        self._adapters = adapters or LocalAdapters()
        self._engine: Engine | None = None
        self._request_sets: OrderedDict[str, RequestSet] = OrderedDict()

    def ready(self) -> Hardware | Failure:
        """Load the base; return what it runs on, or why it could not be loaded."""
        try:
            self._engine = self._build(self._spec)
            hardware = self._engine.hardware()
            if isinstance(self._engine, Learning):
                # Learnt on this kind of hardware only: another has other memory.
                learnt = self._spec.row_limits.get(hardware.fingerprint, {})
                self._engine.row_limits.update(learnt)
            return hardware
        except Exception as error:  # noqa: BLE001 - a failure becomes an event here
            return load_failure_from(error)

    def run(
        self,
        work: UnitWork,
        fetch: Callable[[], RequestSet],
        bring: Mapping[str, Bring] | None = None,
    ) -> UnitAnswers | Broken | Wanted:
        """Answer a unit, or say what must be brought first; then call this again with that.

        Args:
            work: The unit.
            fetch: Brings its request set; called only if the slot does not have it.
            bring: Brings adapters, by content key; called only for those its node does not have.
        """
        with about(unit_id=work.unit_id, subjects=[subject.id for subject in work.subjects]):
            answered = self._run(work, fetch, bring or {})
            _logger.info("unit %s", _NAMES[type(answered)])
            return answered

    def _run(
        self, work: UnitWork, fetch: Callable[[], RequestSet], bring: Mapping[str, Bring]
    ) -> UnitAnswers | Broken | Wanted:
        started = time.perf_counter()
        try:
            engine = self._loaded()
            found = self._with_local_files(work.subjects, bring)
            if isinstance(found, Wanted):
                return found
            shard = Shard(self._request_set(work, fetch), work.shard_index, work.shard_count)
            able = [one for one in found if isinstance(one, Subject)]
            subjects = _in_order(found, engine.answer(shard, able) if able else ())
            hardware = engine.hardware()
            limits = dict(engine.row_limits) if isinstance(engine, Learning) else {}
        except EngineFatalError as error:
            failure = Failure(kind_of(error.kind), error.message, True, traceback_text(error))
            return Broken(failure, is_fatal=True)
        except Exception as error:  # noqa: BLE001 - a failure becomes an event here
            return Broken(failure_from(error), is_fatal=False)
        seconds = time.perf_counter() - started
        return UnitAnswers(subjects=subjects, hardware=hardware, seconds=seconds, row_limits=limits)

    def close(self) -> None:
        """Give the engine's memory back."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise EngineFatalError("the slot was given a unit before its base was loaded")
        return self._engine

    def _with_local_files(
        self, subjects: Sequence[Subject], bring: Mapping[str, Bring]
    ) -> list[Subject | SubjectAnswers] | Wanted:
        """Return the subjects with adapters as they lie on this node, or why one has none."""
        if not reads_adapters(self._spec):
            return list(subjects)
        ready: list[Subject | SubjectAnswers] = []
        wanted: dict[str, None] = {}
        for subject in subjects:
            adapter = subject.opened
            if adapter is None:
                ready.append(subject)
            elif local := self._adapters.find(adapter):
                ready.append(subject.opening(local))
            elif content_key(adapter) in bring:
                ready.append(self._brought(subject, adapter, bring[content_key(adapter)]))
            else:
                wanted[content_key(adapter)] = None
        return Wanted(tuple(wanted)) if wanted else ready

    def _brought(
        self, subject: Subject, adapter: Adapter, bring: Bring
    ) -> Subject | SubjectAnswers:
        brought = bring()
        if isinstance(brought, Failure):
            return SubjectAnswers(subject=subject.id, failure=brought)
        try:
            return subject.opening(self._adapters.keep(adapter, brought))
        except CellError as error:
            return SubjectAnswers(subject=subject.id, failure=failure_from(error))

    def _request_set(self, work: UnitWork, fetch: Callable[[], RequestSet]) -> RequestSet:
        request_set = self._request_sets.pop(work.request_set, None)
        if request_set is None:
            request_set = fetch()
        self._request_sets[work.request_set] = request_set
        if len(self._request_sets) > MAX_REQUEST_SETS:
            self._request_sets.popitem(last=False)
        return request_set


def _in_order(
    found: Sequence[Subject | SubjectAnswers], answered: Sequence[SubjectAnswers]
) -> tuple[SubjectAnswers, ...]:
    """Return everybody's answers: those that were not asked have theirs already."""
    following = iter(answered)
    return tuple(next(following) if isinstance(one, Subject) else one for one in found)
