"""Which engine answers which subject of a sweep, as the plan says it; nothing is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raypeft import api
from raypeft.api.running import prepare
from raypeft.api.surroundings import (
    ENGINE_FILE,
    find_surroundings,
    record_not_loaded,
    record_surroundings,
    recorded_not_loaded,
    recorded_surroundings,
    vllm_installed,
)
from raypeft.api.views import plan_records
from raypeft.core.engine_choice import Surroundings
from raypeft.core.records import FailureKind, LoraRoom
from raypeft.core.spec import Sweep
from raypeft.runtime.local import LocalPool
from tests.support.lab import Lab, MakeSweep
from tests.support.tiny import grown_lora

pytestmark = pytest.mark.torch

TASK = "tiny_letters"
Adapters = dict[str, Path]
PlanOf = Callable[..., api.Planned]


@pytest.fixture(scope="module")
def adapters(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    from tests.engines.zoo import make_adapter

    root = tmp_path_factory.mktemp("adapters")
    made = {name: make_adapter(lab.base, root / name, name) for name in ("dora", "ia3")}
    return {"small": lab.adapters["small"], "large": lab.adapters["large"], **made}


@pytest.fixture
def make_engine_sweep(make_lab_sweep: MakeSweep, lab: Lab, adapters: Adapters) -> MakeSweep:
    def make(kind: str, *names: str, base: dict[str, Any] | None = None, **changes: Any) -> Sweep:
        entry = {"path": str(lab.base), "dtype": "bfloat16"}
        entry["adapters"] = [str(adapters[name]) for name in names or adapters]  # type: ignore[assignment]
        engine = {"kind": kind, **changes.pop("engine", {})}
        return make_lab_sweep(bases=[entry | (base or {})], tasks=[TASK], engine=engine, **changes)

    return make


@pytest.fixture
def plan_with_gpus(make_engine_sweep: MakeSweep) -> PlanOf:
    """Return a function that plans a sweep as on a machine with vLLM and GPUs."""

    def plan(*arguments: Any, **changes: Any) -> api.Planned:
        sweep = make_engine_sweep(*arguments, **changes)
        record_surroundings(sweep, Surroundings(vllm_installed=True, has_gpus=True))
        return api.plan(sweep)

    return plan


def engines(planned: api.Planned) -> dict[str, str]:
    plan = planned.plan
    return {cell.subject: plan.engines[cell.engine_name].kind for cell in planned.cells}


def why(planned: api.Planned) -> dict[str, str]:
    return {row["subject"]: row["why"] for row in plan_records(planned)}


def test_auto_gives_vllm_what_it_can_do_and_hf_the_rest_with_its_baseline(
    plan_with_gpus: PlanOf,
) -> None:
    planned = plan_with_gpus("auto")

    assert engines(planned) == {
        "base": "vllm",
        "base@hf": "hf",
        "base/small": "vllm",
        "base/large": "vllm",
        "base/dora": "hf",
        "base/ia3": "hf",
    }
    assert {cell.base for cell in planned.cells} == {"base"}
    assert {unit.base for unit in planned.plan.units} == {"base", "base@hf"}
    assert {
        unit.subjects[0]: unit.base for unit in planned.plan.units if unit.base == "base@hf"
    }.keys() == {"base@hf", "base/dora", "base/ia3"}
    reasons = why(planned)
    assert "use_dora is set" in reasons["base/dora"]
    assert "lane shared" in reasons["base/dora"]
    assert "type IA3" in reasons["base/ia3"]
    assert "has a GPU" in reasons["base/small"]
    assert "for the adapters that vllm cannot do" in reasons["base@hf"]


def test_the_engines_are_told_what_each_needs(plan_with_gpus: PlanOf) -> None:
    settings = {"max_num_seqs": 32, "batch_invariant": True}
    planned = plan_with_gpus("auto", engine={"vllm": settings})
    fast, plain = planned.plan.engines["base"], planned.plan.engines["base@hf"]

    assert fast.lora == LoraRoom(
        max_rank=8,
        num_adapters=2,
        target_modules=("down_proj", "k_proj", "q_proj", "v_proj"),
    )
    assert fast.options == {"max_num_seqs": 32, "batch_invariant": True}
    assert plain.options == {}
    assert plain.lora is None


def test_the_cells_of_hf_keep_their_identity_whatever_else_is_in_the_sweep(
    plan_with_gpus: PlanOf, make_engine_sweep: MakeSweep, tmp_path: Path
) -> None:
    mixed = {cell.subject: cell.key for cell in plan_with_gpus("auto").cells}
    alone = api.plan(make_engine_sweep("hf", output=str(tmp_path / "alone"))).cells
    keys = {cell.subject: cell.key for cell in alone}

    assert keys.keys() == {"base", "base/small", "base/large", "base/dora", "base/ia3"}
    for subject in ("base/dora", "base/ia3"):
        assert mixed[subject] == keys[subject]
    assert mixed["base@hf"] == keys["base"]
    assert mixed["base/small"] != keys["base/small"]


def test_a_base_whose_adapters_vllm_can_all_do_has_one_engine(plan_with_gpus: PlanOf) -> None:
    planned = plan_with_gpus("auto", "small", "large")
    assert engines(planned).keys() == {"base", "base/small", "base/large"}
    assert set(engines(planned).values()) == {"vllm"}
    assert planned.plan.engines.keys() == {"base"}


def test_a_base_of_whose_adapters_vllm_can_do_none_is_answered_by_hf(
    plan_with_gpus: PlanOf,
) -> None:
    planned = plan_with_gpus("auto", "dora", "ia3")
    assert engines(planned) == {"base": "hf", "base/dora": "hf", "base/ia3": "hf"}
    assert planned.plan.engines.keys() == {"base"}


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({"attn_implementation": "eager"}, "'eager'"),
        ({"dtype": "float32"}, "16 bits"),
        ({"quantization": "bnb-8bit"}, "bnb-8bit"),
    ],
    ids=str,
)
def test_what_the_base_is_set_to_may_rule_vllm_out(
    plan_with_gpus: PlanOf, base: dict[str, Any], words: str
) -> None:
    planned = plan_with_gpus("auto", "small", base=base)
    assert set(engines(planned).values()) == {"hf"}
    assert words in why(planned)["base/small"]


def test_what_hf_does_to_an_adapter_rules_vllm_out(
    plan_with_gpus: PlanOf, lab: Lab, tmp_path: Path
) -> None:
    small = str(lab.adapters["small"])
    grown = grown_lora(lab.base, tmp_path / "grown", 410)
    entries = [
        {"path": small},
        {"path": small, "name": "merged", "merge": True},
        {"path": str(grown)},
    ]
    planned = plan_with_gpus("auto", base={"adapters": entries})
    found = engines(planned)
    assert found["base/small"] == "vllm"
    assert found["base/merged"] == found["base@hf"] == "hf"
    assert found["base/grown"] == found["base@410"] == "hf"
    assert "merge" in why(planned)["base/merged"]
    assert "410 tokens" in why(planned)["base/grown"]


def test_an_enlarged_baseline_is_the_only_one_that_its_adapters_need(
    plan_with_gpus: PlanOf, lab: Lab, tmp_path: Path
) -> None:
    grown = grown_lora(lab.base, tmp_path / "grown", 410)
    entries = [{"path": str(lab.adapters["small"])}, {"path": str(grown)}]
    planned = plan_with_gpus("auto", base={"adapters": entries})
    assert engines(planned).keys() == {"base", "base@410", "base/small", "base/grown"}
    cells = {cell.subject: cell.engine_name for cell in planned.cells}
    assert cells["base@410"] == cells["base/grown"] == "base@hf"


def test_vllm_by_name_makes_failures_of_what_it_cannot_do(
    make_engine_sweep: MakeSweep, lab: Lab, adapters: Adapters, tmp_path: Path
) -> None:
    grown = grown_lora(lab.base, tmp_path / "grown", 410)
    paths = [*adapters.values(), grown]
    planned = api.plan(make_engine_sweep("vllm", base={"adapters": [str(p) for p in paths]}))

    assert engines(planned) == {"base": "vllm", "base/small": "vllm", "base/large": "vllm"}
    failures = {lost.subject: lost.failure for lost in planned.lost}
    assert failures.keys() == {"base/dora", "base/ia3", "base/grown"}
    assert {failure.kind for failure in failures.values()} == {FailureKind.UNSUPPORTED}
    assert "use_dora is set" in failures["base/dora"].message
    assert "type IA3" in failures["base/ia3"].message
    assert "kind: hf" in failures["base/ia3"].message


def test_vllm_by_name_on_a_base_that_it_cannot_do_fails_all_its_subjects(
    make_engine_sweep: MakeSweep,
) -> None:
    sweep = make_engine_sweep("vllm", "small", base={"attn_implementation": "eager"})
    planned = api.plan(sweep)
    assert planned.cells == ()
    assert {lost.subject for lost in planned.lost} == {"base", "base/small"}
    assert all("'eager'" in lost.failure.message for lost in planned.lost)


def test_the_fake_engine_takes_everything(plan_with_gpus: PlanOf) -> None:
    planned = plan_with_gpus("fake")
    assert set(engines(planned).values()) == {"fake"}
    assert "base@hf" not in engines(planned)
    assert why(planned)["base"] == "as the sweep file says"


def test_tensor_parallel_is_for_vllm_by_name(make_engine_sweep: MakeSweep) -> None:
    planned = api.plan(make_engine_sweep("vllm", "small", hardware={"tensor_parallel": 2}))
    assert planned.plan.engines["base"].tensor_parallel == 2


class PreparedPool(LocalPool):
    """A pool that tells what it was asked to prepare."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, str]] = []

    def prepare_slots(self, count: int, kind: str) -> None:
        self.asked.append((count, kind))


@pytest.mark.parametrize(
    ("names", "kind"), [(("small", "large", "dora"), "vllm"), (("small", "dora", "ia3"), "hf")]
)
def test_of_two_engines_slots_are_prepared_for_the_one_that_most_cells_need(
    plan_with_gpus: PlanOf, names: tuple[str, ...], kind: str
) -> None:
    planned = plan_with_gpus("auto", *names, schedule={"slots": 3})
    assert set(engines(planned).values()) == {"hf", "vllm"}
    pool = PreparedPool()
    prepare(pool, planned.resolved)
    assert pool.asked == [(3, kind)]


def test_the_plan_names_what_the_tasks_ask_for(plan_with_gpus: PlanOf) -> None:
    reasons = why(plan_with_gpus("auto", "small", "dora"))
    for subject in ("base", "base/small", "base/dora"):
        assert "the tasks ask for log-likelihoods" in reasons[subject]


def test_a_base_over_several_nodes_reaches_the_engine(make_engine_sweep: MakeSweep) -> None:
    hardware = {"tensor_parallel": 4, "gpus_per_node": 2}
    planned = api.plan(make_engine_sweep("vllm", "small", hardware=hardware))
    engine = planned.plan.engines["base"]
    assert (engine.tensor_parallel, engine.spans_nodes) == (4, True)


def test_what_vllm_could_not_load_stays_with_hf_in_this_output_alone(
    plan_with_gpus: PlanOf, make_engine_sweep: MakeSweep
) -> None:
    planned = plan_with_gpus("auto", "small")
    assert set(engines(planned).values()) == {"vllm"}
    digest = planned.resolved.bases["base"].digest
    record_not_loaded(planned.resolved.sweep, {digest: "no memory", "another": "never"})

    again = api.plan(planned.resolved.sweep)

    assert set(engines(again).values()) == {"hf"}
    assert "vllm could not load it" in why(again)["base/small"]
    assert again.resolved.routes["base"].why_not_vllm.endswith("no memory")
    # By name it is tried again, and fails by itself.
    assert recorded_not_loaded(make_engine_sweep("vllm", "small")) == {}


# --- what auto depends on ---------------------------------------------------------------------


def never() -> bool:
    raise AssertionError("asked for GPUs")


def test_gpus_that_the_sweep_names_are_not_asked_for(make_engine_sweep: MakeSweep) -> None:
    for gpus in (0, 2):
        sweep = make_engine_sweep("vllm", hardware={"gpus": gpus})
        assert find_surroundings(sweep, never).has_gpus is (gpus > 0)
    for kind in ("hf", "fake"):
        find_surroundings(make_engine_sweep(kind), never)


def test_what_was_found_stands_for_later_runs_into_the_same_output(
    make_engine_sweep: MakeSweep,
) -> None:
    sweep = make_engine_sweep("auto")
    assert recorded_surroundings(sweep) is None
    record_surroundings(sweep, Surroundings(vllm_installed=True, has_gpus=True))

    found = find_surroundings(sweep, never)

    assert (found.vllm_installed, found.has_gpus, found.is_recorded) == (True, True, True)
    for other in (make_engine_sweep("vllm"), make_engine_sweep("auto", hardware={"gpus": 1})):
        assert recorded_surroundings(other) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "auto", "gpus": null}'])
def test_a_damaged_record_is_found_out_again(make_engine_sweep: MakeSweep, text: str) -> None:
    sweep = make_engine_sweep("auto")
    Path(sweep.output).mkdir(parents=True)
    (Path(sweep.output) / ENGINE_FILE).write_text(text)
    found = find_surroundings(sweep, lambda: False)
    assert found == Surroundings(vllm_installed=vllm_installed())


def test_a_run_records_what_it_found_and_its_tables_are_made_from_that(
    make_engine_sweep: MakeSweep,
) -> None:
    sweep = make_engine_sweep("auto", "small", base={"dtype": "float32"}, hardware={"gpus": 0})
    report = api.run(sweep, pool="local")
    assert report.failed == {}
    recorded = json.loads((Path(sweep.output) / ENGINE_FILE).read_text())
    assert recorded["has_gpus"] is False
    assert set(api.open(sweep.output).results["engine"].to_pylist()) == {"hf"}
    # Installed or not by now: the sweep keeps its engine, and nothing is answered again.
    again = api.run(sweep, pool="local")
    assert again.num_reused == report.num_done
