"""What lm-eval keeps in the process: random state, environment, printing.

Decides that one freeze or score runs at a time in a process, that it starts from the seeds of
`simple_evaluate`, and that it leaves Python's and numpy's random state as it found them (torch's
stays seeded). Which seeds, and what runs under them, is the caller's business.
"""

import logging
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lm_eval.api.metrics
import lm_eval.api.task
import numpy as np
import tqdm
from lm_eval.utils import set_torch_seed

from raypeft.core.records import EvaluationSettings

logger = logging.getLogger(__name__)

_one_at_a_time = threading.RLock()
"""Seeds, `DISABLE_MULTIPROC` and lm-eval's own caches belong to the whole process."""


class _SilentBar(tqdm.tqdm):  # type: ignore[misc]
    """A progress bar that shows nothing; a class, since other libraries derive from `tqdm`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


@contextmanager
def lm_eval_process(settings: EvaluationSettings) -> Iterator[None]:
    """Hold the process for lm-eval: seeded, quiet, without worker processes of its own."""
    with _one_at_a_time, _random_state_kept(), _quiet(), _no_worker_processes():
        seed_everything(settings)
        yield


def seed_everything(settings: EvaluationSettings) -> None:
    """Seed Python, numpy and torch as `simple_evaluate` does before it builds tasks."""
    random.seed(settings.random_seed)
    np.random.seed(settings.numpy_seed)
    set_torch_seed(settings.torch_seed)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _no_worker_processes() -> Iterator[None]:
    """Keep lm-eval's bootstrap from forking one process per core; the values are the same."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's progress bars and its `print`; its logging stays.

    The names are replaced where lm-eval looks them up. Redirecting stdout instead would swallow
    what other threads print meanwhile.
    """
    datasets = lm_eval.api.task.datasets
    bars_were_on = not datasets.are_progress_bars_disabled()
    task_bar, any_bar = lm_eval.api.task.tqdm, tqdm.tqdm
    lm_eval.api.task.tqdm = _SilentBar
    tqdm.tqdm = _SilentBar
    lm_eval.api.metrics.print = _log_instead
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        lm_eval.api.task.tqdm, tqdm.tqdm = task_bar, any_bar
        del lm_eval.api.metrics.print
        if bars_were_on:
            datasets.enable_progress_bars()


def _log_instead(*words: object) -> None:
    logger.debug("lm-eval: %s", " ".join(str(word) for word in words))
