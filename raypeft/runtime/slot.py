"""A slot as a plain object: loads one base, then answers one unit after another.

The same class runs in a Ray actor and in this process. It turns what an engine raises into
values, so that nothing has to be unpickled to learn what went wrong; how a slot is started,
reached and stopped is the pool's business.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from raypeft.core.records import (
    EngineSpec,
    Failure,
    FailureKind,
    Hardware,
    RequestSet,
    Shard,
    UnitAnswers,
)
from raypeft.engines.base import Engine
from raypeft.errors import EngineFatalError
from raypeft.runtime.failures import failure_from, load_failure_from, traceback_text
from raypeft.runtime.ports import Build, UnitWork

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


class Slot:
    """One loaded base.

    Args:
        spec: What to load.
        build: Loads it.
    """

    def __init__(self, spec: EngineSpec, build: Build) -> None:
        self._spec = spec
        self._build = build
        self._engine: Engine | None = None
        self._request_sets: OrderedDict[str, RequestSet] = OrderedDict()

    def ready(self) -> Hardware | Failure:
        """Load the base; return what it runs on, or why it could not be loaded."""
        try:
            self._engine = self._build(self._spec)
            return self._engine.hardware()
        except Exception as error:  # noqa: BLE001 - a failure becomes an event here
            return load_failure_from(error)

    def run(self, work: UnitWork, fetch: Callable[[], RequestSet]) -> UnitAnswers | Broken:
        """Answer a unit.

        Args:
            work: The unit.
            fetch: Brings its request set; called only if the slot does not have it.
        """
        started = time.perf_counter()
        try:
            engine = self._loaded()
            shard = Shard(self._request_set(work, fetch), work.shard_index, work.shard_count)
            subjects = tuple(engine.answer(shard, work.subjects))
            hardware = engine.hardware()
        except EngineFatalError as error:
            failure = Failure(FailureKind.CRASHED, error.message, True, traceback_text(error))
            return Broken(failure, is_fatal=True)
        except Exception as error:  # noqa: BLE001 - a failure becomes an event here
            return Broken(failure_from(error), is_fatal=False)
        seconds = time.perf_counter() - started
        return UnitAnswers(subjects=subjects, hardware=hardware, seconds=seconds)

    def close(self) -> None:
        """Give the engine's memory back."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise EngineFatalError("the slot was given a unit before its base was loaded")
        return self._engine

    def _request_set(self, work: UnitWork, fetch: Callable[[], RequestSet]) -> RequestSet:
        request_set = self._request_sets.pop(work.request_set, None)
        if request_set is None:
            request_set = fetch()
        self._request_sets[work.request_set] = request_set
        if len(self._request_sets) > MAX_REQUEST_SETS:
            self._request_sets.popitem(last=False)
        return request_set
