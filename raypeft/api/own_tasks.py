"""A sweep's own task files in digests, remembered for nodes that have only part of them.

Planning and answering do without task files, scoring without their data: where something is
absent, the digests are those of the node that froze.
"""

from dataclasses import dataclass
from pathlib import Path

from raypeft.core.identity import canonical
from raypeft.core.spec import Sweep
from raypeft.errors import Problem, SetupError, SpecError
from raypeft.store.store import Store


@dataclass(frozen=True, slots=True)
class OwnTaskDigests:
    """What own task files come to.

    Attributes:
        whole: Of everything, data included: what a freeze is looked up by.
        python: Of their Python, which decides scores beside a task's configuration.
    """

    whole: str = ""
    python: str = ""


def own_task_digests(sweep: Sweep, store: Store) -> OwnTaskDigests:
    """Return the digests of the include paths and of entries that are YAML files themselves.

    Raises:
        SpecError: If a path is absent here and unknown to the store.
    """
    files = [task.name for task in sweep.tasks if task.name.endswith((".yaml", ".yml"))]
    places = [*sweep.include_path, *files]
    if not places:
        return OwnTaskDigests()
    place = canonical(places)
    absent = [path for path in places if not Path(path).exists()]
    if absent:
        if remembered := _remembered(store, place):
            return remembered
        remedy = "create it, correct the path, or run `raypeft freeze` where it exists"
        raise SpecError(
            tuple(Problem("include_path", f"there is no {path!r}", remedy) for path in absent)
        )
    from raypeft.harness.include import read_own_tasks  # lm-eval; only own tasks need it

    own = read_own_tasks(places)
    found = OwnTaskDigests(own.digest, own.python)
    if not own.has_data:
        return _remembered(store, own.code) or found
    for key in (place, own.code):
        _remember(store, key, found)
    return found


def _remembered(store: Store, key: str) -> OwnTaskDigests | None:
    value = store.get_memo("include", key)
    return OwnTaskDigests(*value) if isinstance(value, list) else None


def _remember(store: Store, key: str, value: OwnTaskDigests) -> None:
    try:
        store.put_memo("include", key, [value.whole, value.python])
    except SetupError:
        return  # a store that can only be read still plans
