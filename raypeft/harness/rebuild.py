"""Builds a frozen task again for scoring, on its frozen documents and without its dataset.

The task comes from the same entry, name and overrides as when it was frozen, so its configuration,
filters and metrics are those of a fresh run. Built tasks are kept for the process, since one task
is scored for many subjects in a row; an edited YAML or Python file below the include paths makes
a new one.
"""

import hashlib
import logging
import os
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from raypeft.core.identity import canonical
from raypeft.core.records import FailureKind, Json, RequestSet
from raypeft.errors import CellError
from raypeft.harness.replay import on_frozen_docs
from raypeft.harness.tasks import Loaded, apply_overrides, load_entry

logger = logging.getLogger(__name__)

_MAX_KEPT = 64


class _Kept:
    """Values by key, the latest few."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: Json, make: Callable[[], Any]) -> Any:
        name = hashlib.sha256(canonical(key).encode("ascii")).hexdigest()
        if name not in self._values:
            self._values[name] = make()
            if len(self._values) > _MAX_KEPT:
                self._values.popitem(last=False)
        self._values.move_to_end(name)
        return self._values[name]


_tasks = _Kept()
_entries = _Kept()
"""Resolved entries: each task of a group would resolve the whole group again."""


def scoring_task(request_set: RequestSet, include_path: Sequence[str] = ()) -> Any:
    """Return the task of a request set, built on its frozen documents.

    It is shared: take a view of it (`raypeft.harness.replay.with_instances`) for each subject.

    Args:
        request_set: The request set, with its documents.
        include_path: Folders of own tasks, as they were when it was frozen.

    Raises:
        CellError: If the task cannot be resolved or built.
    """
    where: Json = [request_set.entry, _files(include_path), os.getcwd()]
    settings = asdict(request_set.settings)
    documents = len(request_set.documents)

    def make() -> Any:
        try:
            allow_unsafe = request_set.settings.confirm_run_unsafe_code
            load = partial(load_entry, request_set.entry, include_path, allow_unsafe=allow_unsafe)
            loaded: Loaded = _entries.get([where, allow_unsafe], load)
            leaf = loaded.leaves[request_set.task]
        except Exception as error:
            raise task_failed(request_set, "cannot be found again", error) from error
        return _build(request_set, leaf)

    return _tasks.get([where, request_set.digest, documents, settings], make)


def _build(request_set: RequestSet, leaf: Any) -> Any:
    replace_class = partial(on_frozen_docs, request_set)
    try:
        task = leaf.build(replace_class)
    except Exception as error:
        if leaf.config.get("class") is None:
            raise task_failed(request_set, "could not be built for scoring", error) from error
        built = _build_with_dataset(request_set, leaf, error)
        task = object.__new__(replace_class(type(built)))
        task.__dict__.update(built.__dict__)
    apply_overrides(task, request_set.settings)
    return task


def _build_with_dataset(request_set: RequestSet, leaf: Any, first: Exception) -> Any:
    """Build a Python class that reads its dataset in its constructor."""
    logger.info("task '%s' does not build without its dataset: %s", request_set.task, first)
    try:
        return leaf.build()
    except Exception as error:
        what = (
            f"is a Python class that does not build without its dataset ({first}), nor with it "
            "here; score where its dataset is"
        )
        raise task_failed(request_set, what, error) from error


def task_failed(request_set: RequestSet, what: str, error: Exception) -> CellError:
    """Return the error that says which task failed, how, and in which line."""
    cause = " ".join(str(error).split()) or "no message"
    frames = traceback.extract_tb(error.__traceback__)
    line = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    message = f"task '{request_set.task}' {what}: {type(error).__name__}: {cause}{line}"
    return CellError(FailureKind.TASK_FAILED, message)


def _files(include_path: Sequence[str]) -> list[Json]:
    """Return what changes when a file that defines tasks is edited."""
    return [
        [str(path), path.stat().st_mtime_ns, path.stat().st_size]
        for folder in include_path
        for pattern in ("*.yaml", "*.py")
        for path in sorted(Path(folder).rglob(pattern))
    ]
