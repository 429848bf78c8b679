"""When a base that vLLM gave nothing for is answered by hf after all."""

from types import SimpleNamespace
from typing import Any

import pytest

from raypeft.api.outputs import CellRun
from raypeft.api.rerouting import record_too_much
from raypeft.api.surroundings import recorded_not_loaded
from raypeft.core.records import Failure, FailureKind
from raypeft.core.spec import make_sweep

CELLS = {"a": ("a1", "a2"), "a@hf": ("a3",), "b": ("b1",)}


def cell(engine: str, key: str) -> Any:
    return SimpleNamespace(key=key, base=engine.removesuffix("@hf"), engine_name=engine)


def planned_of(tmp_path: Any, *done: str, kind: str = "auto") -> Any:
    bases = [{"path": name, "name": name} for name in ("a", "b")]
    values = {"output": str(tmp_path / "run"), "bases": bases, "tasks": ["task"]}
    sweep = make_sweep({**values, "engine": {"kind": kind}})
    kinds = {"a": "vllm", "a@hf": "hf", "b": "vllm"}
    return SimpleNamespace(
        resolved=SimpleNamespace(
            sweep=sweep, bases={name: SimpleNamespace(digest=f"of {name}") for name in ("a", "b")}
        ),
        plan=SimpleNamespace(
            engines={name: SimpleNamespace(kind=own) for name, own in kinds.items()}, done=done
        ),
        cells=[cell(engine, key) for engine, keys in CELLS.items() for key in keys],
    )


def ended(**failures: FailureKind) -> dict[str, CellRun]:
    """Return how all cells ended: these failed so, and the others well."""
    return {
        key: CellRun(
            failure=Failure(failures[key], f"{key}: {failures[key]}") if key in failures else None
        )
        for keys in CELLS.values()
        for key in keys
    }


@pytest.mark.parametrize(
    "kind", [FailureKind.OUT_OF_MEMORY, FailureKind.LOAD_FAILED, FailureKind.UNSUPPORTED]
)
def test_a_base_that_vllm_answers_nothing_for_goes_to_hf_with_the_reason(
    tmp_path: Any, kind: FailureKind
) -> None:
    planned, said = planned_of(tmp_path), list[str]()
    assert record_too_much(planned, ended(a1=kind, a2=kind), said.append)
    assert recorded_not_loaded(planned.resolved.sweep) == {"of a": f"a1: {kind}"}
    assert said == [f"vllm cannot answer for base a, which hf does instead: a1: {kind}"]


def test_what_no_engine_can_be_asked_is_no_sign_of_an_engine_that_works(tmp_path: Any) -> None:
    runs = ended(a1=FailureKind.TASK_FAILED, a2=FailureKind.OUT_OF_MEMORY)
    assert record_too_much(planned_of(tmp_path), runs, print)
    runs = ended(a1=FailureKind.TASK_FAILED, a2=FailureKind.TASK_FAILED)
    assert not record_too_much(planned_of(tmp_path), runs, print)


@pytest.mark.parametrize(
    "failures",
    [
        {},
        {"a1": FailureKind.OUT_OF_MEMORY},  # vLLM answered the other
        {"a1": FailureKind.OUT_OF_MEMORY, "a2": FailureKind.CRASHED},
        {"a3": FailureKind.OUT_OF_MEMORY},  # that is hf itself
    ],
)
def test_a_base_that_vllm_can_load_stays_with_it(
    tmp_path: Any, failures: dict[str, FailureKind]
) -> None:
    planned = planned_of(tmp_path)
    assert not record_too_much(planned, ended(**failures), print)
    assert recorded_not_loaded(planned.resolved.sweep) == {}


def test_answers_that_are_there_or_left_out_keep_a_base_with_vllm(tmp_path: Any) -> None:
    runs = ended(a2=FailureKind.OUT_OF_MEMORY)
    del runs["a1"]  # done before, or left out by a deadline
    assert not record_too_much(planned_of(tmp_path, "a1"), runs, print)
    assert not record_too_much(planned_of(tmp_path), runs, print)


def test_vllm_by_name_is_not_replaced(tmp_path: Any) -> None:
    planned = planned_of(tmp_path, kind="vllm")
    assert not record_too_much(planned, ended(b1=FailureKind.OUT_OF_MEMORY), print)
