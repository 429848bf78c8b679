"""A task entry → lm-eval's tasks and groups, exactly as `simple_evaluate` would have them.

Names, groups, tags and the configuration of each leaf task are resolved by lm-eval's own manager
and factory. What is decided here is *when* a leaf task is built: after the whole entry has been
resolved, one at a time, so that a task that cannot be built is known by its own name and takes
none of its group with it. Building requests is left to `freeze.py`, scoring to `score.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.group import Group as LmEvalGroup
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager, _factory
from lm_eval.tasks._index import Entry

from raypeft.core.records import EvaluationSettings, FailureKind
from raypeft.errors import CellError
from raypeft.harness.index import build_index

TaskClass = Callable[..., Any]
"""Turns a class of lm-eval tasks into the class that is instantiated in its place."""


class Leaf:
    """A leaf task that lm-eval has resolved and that is not built yet.

    It stands in lm-eval's groups where the task would stand.

    Args:
        task_name: The task's name.
        config: Its full configuration, functions resolved.
        error: Why the configuration could not be read, if so.
    """

    def __init__(
        self, task_name: str, config: dict[str, Any], error: Exception | None = None
    ) -> None:
        self.task_name = task_name
        self.config = config
        self.error = error

    def build(self, replace_class: TaskClass = lambda task_class: task_class) -> Any:
        """Build the task as `TaskFactory` does.

        Args:
            replace_class: What to instantiate instead of a task class.

        Raises:
            Exception: Whatever the task raises.
        """
        if self.error is not None:
            raise self.error
        # lm-eval changes parts of the configuration it is given.
        config = deepcopy(self.config)
        task_class = config.get("class")
        if task_class is None:
            return replace_class(ConfigurableTask)(config=config)
        accepts_config = _factory._ctor_accepts_config(task_class)
        chosen = replace_class(task_class)
        task = chosen(config=config) if accepts_config else chosen()
        if hasattr(task, "config") and hasattr(task.config, "task"):
            task.config.task = self.task_name
        return task


# `Group.get_all_tasks` asks `isinstance(child, Task)`; a leaf answers yes without a dataset.
Task.register(Leaf)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a task entry stands for.

    Attributes:
        leaves: By task name, in lm-eval's order.
        groups: lm-eval's groups by name, with leaves as their children.
    """

    leaves: dict[str, Leaf] = field(default_factory=dict)
    groups: dict[str, LmEvalGroup] = field(default_factory=dict)


def load_entry(
    entry: str, include_path: Sequence[str] = (), *, allow_unsafe: bool = False
) -> Loaded:
    """Resolve a task, group, tag or YAML path without building any task.

    Args:
        entry: Its name.
        include_path: Folders of own tasks.
        allow_unsafe: Whether tasks that execute generated code may be read.

    Raises:
        raypeft.harness.index.UnknownTaskError: If there is no such entry.
        Exception: Whatever lm-eval raises about a group's configuration.
    """
    manager = TaskManager(include_defaults=False)
    manager._index = build_index(entry, include_path)
    manager._factory = _LeafFactory(allow_unsafe)
    with _inline_tasks_as_leaves():
        loaded = manager.load([entry])
    return Loaded(leaves=dict(loaded["tasks"]), groups=dict(loaded["groups"]))


def apply_overrides(task: Any, settings: EvaluationSettings) -> None:
    """Apply the settings to a built task, as `simple_evaluate` does (lm-eval 0.4.13)."""
    if task.get_config("output_type") == "generate_until" and settings.gen_kwargs:
        overrides = deepcopy(dict(settings.gen_kwargs))
        task.set_config(key="generation_kwargs", value=overrides, update=True)
    pinned = task.get_config("num_fewshot")
    if settings.num_fewshot is None:
        if pinned is None:
            task.set_config(key="num_fewshot", value=0)
    elif pinned != 0:
        # A task that says 0 itself keeps it.
        task.set_config(key="num_fewshot", value=settings.num_fewshot)
    task.set_fewshot_seed(seed=settings.fewshot_seed)


def refuse(unsafe: bool, multimodal: bool) -> None:
    """Raise for a task that must not be read.

    Args:
        unsafe: Whether it executes generated code without permission.
        multimodal: Whether it needs images or audio.

    Raises:
        CellError: If either holds.
    """
    if unsafe:
        raise CellError(
            FailureKind.UNSAFE,
            "it executes generated code when it is scored; "
            "set confirm_run_unsafe_code to allow that",
        )
    if multimodal:
        raise CellError(FailureKind.UNSUPPORTED, "it needs images or audio; no engine reads them")


class _LeafFactory(_factory.TaskFactory):  # type: ignore[misc]
    """lm-eval's factory, except that tasks come out as leaves."""

    def __init__(self, allow_unsafe: bool) -> None:
        super().__init__()
        self._allow_unsafe = allow_unsafe

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Leaf:
        unread = {**(entry.cfg or {}), **(overrides or {})}
        name = str(unread.get("task") or entry.name)
        try:
            # Before it is read, since reading imports and runs the task's Python.
            self._refuse(unread)
            config = self._load_full_config(entry, overrides)
        except Exception as error:  # noqa: BLE001 - becomes this leaf's failure
            return Leaf(name, unread, error)
        for key in ("tag", "group", "task_list"):
            config.pop(key, None)
        return Leaf(config["task"], config)

    def _refuse(self, config: dict[str, Any]) -> None:
        unsafe = config.get("unsafe_code", False) is not False and not self._allow_unsafe
        has_image, audio = config.get("doc_to_image") is not None, config.get("doc_to_audio")
        refuse(unsafe, has_image or bool(audio))


@contextmanager
def _inline_tasks_as_leaves() -> Iterator[None]:
    """Let the factory make leaves of tasks that a group defines in place, too."""

    def inline(config: dict[str, Any]) -> Leaf:
        return Leaf(config["task"], config)

    _factory.ConfigurableTask = inline
    try:
        yield
    finally:
        _factory.ConfigurableTask = ConfigurableTask
