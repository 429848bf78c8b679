"""A sweep as it was run, planned again from what its output and its store hold."""

from functools import partial

from raypeft.api.certificates import certified_by
from raypeft.api.early_stopping import remembered_stop
from raypeft.api.freezing import freeze_sweep
from raypeft.api.lasting import remembered_failure
from raypeft.api.memo import FileDigests
from raypeft.api.planning import Planned, make_plan
from raypeft.api.surroundings import recorded_surroundings
from raypeft.api.sweeps import resolve
from raypeft.core.spec import parse_sweep
from raypeft.errors import SetupError
from raypeft.store.files import Folder
from raypeft.store.store import Store

SWEEP_FILE = "sweep.yaml"
"""The copy of the sweep in its output, adapters expanded."""


def read_planned(output: str) -> tuple[Planned, Store]:
    """Return the plan of a sweep that was run, and its store.

    Raises:
        SetupError: If there was none.
    """
    text = Folder(output).read(SWEEP_FILE)
    if text is None:
        raise SetupError(
            f"{output} holds no {SWEEP_FILE}", "give the `output` folder of a sweep that was run"
        )
    sweep = parse_sweep(text.decode(), source=f"{output}/{SWEEP_FILE}")
    store = Store(sweep.store)
    # As it was run: what is to be measured anew is measured by the next run.
    certified = certified_by(sweep, store, of_any_version=True)
    resolved = resolve(sweep, FileDigests(store), recorded_surroundings(sweep), certified)
    frozen = freeze_sweep(resolved, store, pool=None)
    planned = make_plan(
        resolved,
        frozen,
        answered=store.answered(),
        scored=store.scored(),
        failed=partial(remembered_failure, store),
        stopped=partial(remembered_stop, store),
    )
    return planned, store
