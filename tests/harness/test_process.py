"""Freezing and scoring leave the process as they found it."""

import os
import random
import threading

import numpy as np
import pytest

from raypeft.core.records import EvaluationSettings

pytestmark = pytest.mark.torch


def test_seeds_environment_and_names_are_set_inside_and_restored_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import lm_eval.api.metrics
    import lm_eval.api.task
    import tqdm

    from raypeft.harness.process import lm_eval_process

    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    bars = lm_eval.api.task.tqdm, tqdm.tqdm
    random.seed(3)
    np.random.seed(3)
    with lm_eval_process(EvaluationSettings(random_seed=7, numpy_seed=8)):
        assert os.environ["DISABLE_MULTIPROC"] == "1"
        assert random.random() == random.Random(7).random()
        assert np.random.random() == np.random.RandomState(8).random()
        assert issubclass(tqdm.tqdm, bars[1])
        assert tqdm.tqdm(range(3)).disable
    assert random.random() == random.Random(3).random()
    assert np.random.random() == np.random.RandomState(3).random()
    assert (lm_eval.api.task.tqdm, tqdm.tqdm) == bars
    assert not hasattr(lm_eval.api.metrics, "print")
    assert "DISABLE_MULTIPROC" not in os.environ


def test_everything_is_restored_after_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm

    from raypeft.harness.process import lm_eval_process

    monkeypatch.setenv("DISABLE_MULTIPROC", "kept")
    bar = tqdm.tqdm
    with pytest.raises(KeyError), lm_eval_process(EvaluationSettings()):
        raise KeyError("inside")
    assert os.environ["DISABLE_MULTIPROC"] == "kept"
    assert tqdm.tqdm is bar


def test_threads_go_one_after_the_other() -> None:
    from raypeft.harness.process import lm_eval_process

    drawn: list[float] = []

    def draw(seed: int) -> None:
        with lm_eval_process(EvaluationSettings(random_seed=seed)):
            drawn.extend(random.random() for _ in range(1000))

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = set()
    for seed in range(4):
        stream = random.Random(seed)
        expected |= {stream.random() for _ in range(1000)}
    assert set(drawn) == expected
