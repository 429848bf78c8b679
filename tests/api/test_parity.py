"""raypeft's numbers against a fresh lm-eval, run in the test.

Bit for bit at the same batch size with lm-eval's own batches (`sharing: false`); with contexts
shared, as by default, log-likelihoods within 1e-4 nats and everything that is counted the same.

The reference gets the adapter as raypeft does, onto the base's own vocabulary: lm-eval's `peft=`
resizes the embedding, which is a different base (see ARCHITECTURE.md).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raypeft import api
from raypeft.core.spec import Sweep
from raypeft.store.jsontext import load_json
from tests.support.lab import Lab

pytestmark = pytest.mark.torch

TASKS = (
    *("tiny_mc", "tiny_mc_first_n", "tiny_letters", "tiny_mutual", "tiny_vectors", "tiny_gen"),
    *("tiny_lambada", "tiny_rolling", "tiny_function", "tiny_empty_context", "tiny_class"),
)
SUBJECTS = ("base", "small", "large")


def reference(lab: Lab, subject: str, tasks: list[str], batch_size: int, **settings: Any) -> Any:
    """Return what a fresh lm-eval says."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from peft import PeftModel

    lm = HFLM(
        pretrained=str(lab.base),
        batch_size=batch_size,
        dtype="float32",
        device="cpu",
        softmax_dtype="float32",
    )
    if subject != "base":
        lm._model = PeftModel.from_pretrained(lm.model, str(lab.adapters[subject])).eval()
    manager = TaskManager(include_path=str(lab.tasks.folder), include_defaults=False)
    return simple_evaluate(
        lm,
        tasks=tasks,
        task_manager=manager,
        **{"fewshot_as_multiturn": False, "bootstrap_iters": 100, **settings},
    )


@pytest.fixture(scope="module")
def ours(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return _run(lab, tmp_path_factory.mktemp("parity"), list(TASKS))


def _run(lab: Lab, folder: Path, tasks: list[str], batch_size: int = 4, **more: Any) -> Sweep:
    from raypeft.core.spec import make_sweep

    adapters = [str(path) for path in lab.adapters.values()]
    evaluation = {"bootstrap_iters": 100, **more.pop("evaluation", {})}
    engine = {"kind": "hf", "batch_size": batch_size, "sharing": False, **more.pop("engine", {})}
    sweep = make_sweep(
        {
            "output": str(folder / "run"),
            "bases": [{"path": str(lab.base), "adapters": adapters}],
            "tasks": tasks,
            "include_path": [str(lab.tasks.folder)],
            "engine": engine,
            "evaluation": evaluation,
            **more,
        }
    )
    report = api.run(sweep, pool="local")
    assert report.failed == {}
    return sweep


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("task", TASKS)
def test_every_number_of_a_task_is_lm_evals(lab: Lab, ours: Sweep, subject: str, task: str) -> None:
    theirs = reference(lab, subject, [task], batch_size=4)
    _check_task(ours, subject, task, theirs)


@pytest.fixture(scope="module")
def shared(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("shared")
    return _run(lab, folder, [*TASKS, "tiny_nested"], engine={"sharing": True})


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("task", TASKS)
def test_with_shared_contexts_a_task_is_lm_evals_within_rounding(
    lab: Lab, shared: Sweep, subject: str, task: str
) -> None:
    theirs = reference(lab, subject, [task], batch_size=4)
    _check_prompts(shared, task, theirs["samples"][task])
    ours, expected = _results(shared, subject, task), dict(_numbers(theirs["results"][task]))
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert ours[key] == (_near(value) if isinstance(value, float) else value), key
    keyed = {(r["doc_id"], r["filter"]): r for r in _samples(shared, subject, task)}
    for sample in theirs["samples"][task]:
        row = keyed[sample["doc_id"], sample["filter"]]
        pairs = zip(_flat(load_json(row["responses"])), _flat(_plain(sample["resps"])), strict=True)
        assert all(a == (_near(b) if isinstance(b, float) else b) for a, b in pairs)


def test_with_shared_contexts_groups_are_lm_evals(lab: Lab, shared: Sweep) -> None:
    for subject in SUBJECTS:
        theirs = reference(lab, subject, ["tiny_nested"], batch_size=4)
        for name in ("tiny_nested", "tiny_group"):
            expected = dict(_numbers(theirs["results"][name]))
            assert _results(shared, subject, name, is_group=True) == expected


def test_groups_are_lm_evals(lab: Lab, tmp_path: Path) -> None:
    # One row a batch: then no other task of the group can share a batch.
    sweep = _run(lab, tmp_path, ["tiny_nested"], batch_size=1)
    for subject in SUBJECTS:
        theirs = reference(lab, subject, ["tiny_nested"], batch_size=1)
        for name in ("tiny_nested", "tiny_group"):
            expected = dict(_numbers(theirs["results"][name]))
            assert expected
            assert _results(sweep, subject, name, is_group=True) == expected
        for task in ("tiny_letters", "tiny_gen"):
            _check_task(sweep, subject, task, theirs)


def test_a_chat_template_with_multi_turn_shots_is_lm_evals(lab: Lab, tmp_path: Path) -> None:
    settings = {"apply_chat_template": True, "system_instruction": "Be brief."}
    sweep = _run(lab, tmp_path, ["tiny_mc", "tiny_gen"], evaluation=settings)
    for subject in SUBJECTS:
        for task in ("tiny_mc", "tiny_gen"):
            theirs = reference(
                lab, subject, [task], batch_size=4, fewshot_as_multiturn=True, **settings
            )
            _check_task(sweep, subject, task, theirs)


def test_limit_and_shots_are_lm_evals(lab: Lab, tmp_path: Path) -> None:
    sweep = _run(lab, tmp_path, ["tiny_mc", "tiny_gen"], evaluation={"limit": 5, "num_fewshot": 3})
    for task in ("tiny_mc", "tiny_gen"):
        theirs = reference(lab, "large", [task], batch_size=4, limit=5, num_fewshot=3)
        _check_task(sweep, "large", task, theirs)


def test_another_batch_size_moves_log_likelihoods_by_rounding_only(lab: Lab, ours: Sweep) -> None:
    theirs = reference(lab, "large", ["tiny_mc"], batch_size=7)
    expected = [
        resp[0]
        for sample in theirs["samples"]["tiny_mc"]
        for choice in sample["resps"]
        for resp in choice
    ]
    got = [
        resp[0]
        for row in _samples(ours, "large", "tiny_mc")
        for choice in load_json(row["responses"])
        for resp in choice
    ]
    assert got == pytest.approx(expected, abs=1e-4)
    assert _results(ours, "large", "tiny_mc") == dict(_numbers(theirs["results"]["tiny_mc"]))


# --- comparison -------------------------------------------------------------------------------


def _check_task(sweep: Sweep, subject: str, task: str, theirs: Any) -> None:
    assert _results(sweep, subject, task) == dict(_numbers(theirs["results"][task]))
    _check_prompts(sweep, task, theirs["samples"][task])
    rows = _samples(sweep, subject, task)
    expected = theirs["samples"][task]
    assert len(rows) == len(expected)
    keyed = {(row["doc_id"], row["filter"]): row for row in rows}
    for sample in expected:
        row = keyed[sample["doc_id"], sample["filter"]]
        assert load_json(row["responses"]) == _plain(sample["resps"])
        assert load_json(row["filtered_responses"]) == _plain(sample["filtered_resps"])
        metrics = {item["name"]: load_json(item["json"]) for item in row["metrics"]}
        assert metrics == {name: _plain(sample[name]) for name in sample["metrics"]}
        for name in ("doc_hash", "prompt_hash", "target_hash"):
            assert row[name] == sample[name]


def _check_prompts(sweep: Sweep, task: str, samples: list[Any]) -> None:
    """Every argument of every request, in order."""
    from raypeft.store.store import Store

    store = Store(sweep.store)
    (digest,) = {
        row["request_set"] for row in _rows(sweep) if row["task"] == task and not row["is_group"]
    }
    request_set = store.get_request_set(digest)
    assert request_set is not None
    first_filter = samples[0]["filter"]
    expected = [
        (sample["doc_id"], _plain(arguments))
        for sample in samples
        if sample["filter"] == first_filter
        for arguments in sample["arguments"]
    ]
    got = sorted(
        (request.doc_id, request.idx, _plain(request.arguments))
        for request in request_set.requests
        if request.repeat == 0
    )
    assert [(doc_id, arguments) for doc_id, _, arguments in got] == expected


def _rows(sweep: Sweep) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = api.open(sweep.output).results.to_pylist()
    return rows


def _subject(name: str) -> str:
    return "base" if name == "base" else f"base/{name}"


def _results(sweep: Sweep, subject: str, task: str, *, is_group: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in _rows(sweep):
        if (row["subject"], row["task"], row["is_group"]) == (_subject(subject), task, is_group):
            key = f"{row['metric']},{row['filter']}"
            found[key] = load_json(row["value_json"])
            found[f"{row['metric']}_stderr,{row['filter']}"] = row["stderr"]
    return found


def _numbers(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in result.items():
        if "," in key:
            yield key, None if value == "N/A" and "_stderr" in key else _plain(value)


def _samples(sweep: Sweep, subject: str, task: str) -> list[dict[str, Any]]:
    table = api.open(sweep.output).samples_of(_subject(subject), task)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _near(value: float) -> Any:
    # Perplexities are exponentials: 1e-4 nats are as much relative to them.
    return pytest.approx(value, abs=1e-4, rel=1e-3)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: tuples and arrays as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return value
