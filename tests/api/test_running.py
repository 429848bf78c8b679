import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raypeft import api
from raypeft.core.spec import make_sweep
from raypeft.core.status import CellState, RunPhase
from raypeft.errors import SetupError, SpecError
from tests.support.lab import Lab, MakeSweep, assert_same_tables

pytestmark = pytest.mark.torch

FAKE = {"kind": "fake"}


def test_a_sweep_ends_with_results_samples_gains_and_cells(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep()
    report = api.run(sweep, pool="local")
    assert (report.num_cells, report.num_done, report.failed) == (9, 9, {})
    tables = api.open(sweep.output)
    assert set(tables.results["subject"].to_pylist()) == {"base", "base/small", "base/large"}
    assert tables.samples.num_rows == 3 * (12 + 2 * 12 + 12)  # tiny_gen has two filters
    assert set(tables.gains["adapter"].to_pylist()) == {"small", "large"}
    assert tables.cells["state"].to_pylist() == ["done"] * 9
    assert all(device for device in tables.cells["device"].to_pylist())


def test_a_second_run_of_a_finished_sweep_does_nothing(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(engine=FAKE)
    api.run(sweep, pool="local")
    before = _files(Path(sweep.output).parent)
    again = api.run(sweep, pool="local")
    assert (again.num_done, again.num_reused) == (9, 9)
    # Only the copy of the sweep file is written anew; a journal segment would tell of work.
    assert _files(Path(sweep.output).parent) == before


def test_a_sweep_that_overlaps_reuses_what_the_store_has(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    first = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    api.run(first, pool="local")
    second = make_lab_sweep(
        engine=FAKE,
        tasks=["tiny_letters", "tiny_rolling"],
        output=str(tmp_path / "second"),
        store=first.store,
    )
    report = api.run(second, pool="local")
    assert (report.num_done, report.num_reused) == (6, 3)


def test_an_adapter_and_its_copy_are_answered_once(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    twins = [str(shutil.copytree(lab.adapters["small"], tmp_path / n)) for n in ("one", "two")]
    sweep = make_lab_sweep(engine=FAKE, bases=[{"path": str(lab.base), "adapters": twins}])
    planned = api.plan(sweep)
    assert len(planned.cells) == 9
    assert len(planned.plan.units) == 6
    report = api.run(sweep, pool="local")
    assert report.num_done == 9
    rows = api.open(sweep.output).results.to_pylist()
    values = {
        subject: [row["value"] for row in rows if row["subject"] == subject]
        for subject in ("base/one", "base/two")
    }
    assert values["base/one"] == values["base/two"] != []


@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("slots", [1, 2])
def test_shards_and_slots_change_no_byte_of_the_tables(
    make_lab_sweep: MakeSweep, tmp_path: Path, shards: int, slots: int
) -> None:
    whole = make_lab_sweep(output=str(tmp_path / "whole"), store=str(tmp_path / "store-whole"))
    api.run(whole, pool="local")
    cut = make_lab_sweep(
        output=str(tmp_path / "cut"),
        store=str(tmp_path / "store-cut"),
        schedule={"shards": shards, "slots": slots},
    )
    # The sweep's copy differs, the tables must not.
    report = api.run(cut, pool="local")
    assert report.num_done == 9
    assert_same_tables(whole.output, cut.output)


def test_a_unit_that_crashes_is_tried_again_and_the_tables_are_the_same(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    calm = make_lab_sweep(engine=FAKE, output=str(tmp_path / "calm"), store=str(tmp_path / "a"))
    api.run(calm, pool="local")
    crash = {"do": "fatal", "once": str(tmp_path / "crashed"), "adapter": "small", "shard": 1}
    rough = make_lab_sweep(
        engine={"kind": "fake", "options": {"script": {"events": [crash]}}},
        schedule={"shards": 3},
        output=str(tmp_path / "rough"),
        store=str(tmp_path / "b"),
    )
    report = api.run(rough, pool="local")
    assert report.failed == {}
    assert (tmp_path / "crashed").exists()
    assert_same_tables(calm.output, rough.output)
    assert max(api.open(rough.output).cells["attempts"].to_pylist()) > 3


def test_the_expanded_sweep_is_stored_with_the_results(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    from raypeft.core.spec import expand, parse_sweep
    from raypeft.runtime.files import LocalFolders

    folder = lab.base.parent / "adapters"
    sweep = make_lab_sweep(
        engine=FAKE,
        tasks=["tiny_letters"],
        bases=[{"path": str(lab.base), "adapters": [f"{folder}/*"]}],
    )
    sweep = expand(sweep, LocalFolders())
    api.run(sweep, pool="local")
    text = (Path(sweep.output) / "sweep.yaml").read_text()
    stored = parse_sweep(text, source="sweep.yaml")
    assert stored == sweep
    assert [a.table_name for a in stored.bases[0].adapters] == ["large", "small"]


def test_after_a_freeze_nothing_but_scoring_needs_the_task_files(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(lab.tasks.folder, tasks)
    for yaml in tasks.glob("*.yaml"):
        yaml.write_text(yaml.read_text().replace(str(lab.tasks.data), str(tasks / "data")))
    sweep = make_lab_sweep(engine=FAKE, include_path=[str(tasks)], tasks=["tiny_letters"])
    api.freeze(sweep)
    shutil.rmtree(tasks / "data")
    shutil.move(tasks, tmp_path / "elsewhere")
    planned = api.plan(sweep, freeze=False)
    assert [cell.task for cell in planned.cells] == ["tiny_letters"] * 3
    assert planned.frozen.missing == ()
    shutil.move(tmp_path / "elsewhere", tasks)
    # The data are still gone; scoring works from the frozen documents.
    report = api.run(sweep, pool="local")
    assert (report.num_done, report.failed) == (3, {})


def test_an_edited_own_task_is_frozen_again(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(lab.tasks.folder, tasks)
    sweep = make_lab_sweep(engine=FAKE, include_path=[str(tasks)], tasks=["tiny_letters"])
    before = api.plan(sweep).cells[0].request_set
    yaml = tasks / "tiny_letters.yaml"
    yaml.write_text(yaml.read_text().replace("{{question}}", "Tell: {{question}}"))
    assert api.plan(sweep).cells[0].request_set != before


def test_a_task_in_two_entries_under_different_settings_is_a_named_failure(
    make_lab_sweep: MakeSweep,
) -> None:
    sweep = make_lab_sweep(
        engine=FAKE, tasks=[{"name": "tiny_letters", "limit": 3}, "tiny_group", "tiny_rolling"]
    )
    report = api.run(sweep, pool="local")
    messages = {failure.message for failure in report.failed.values()}
    assert len(messages) == 1
    assert "tiny_letters" in messages.pop()
    assert report.num_done > 0


def test_a_sweep_of_which_nothing_can_run_is_refused(lab: Lab, tmp_path: Path) -> None:
    sweep = make_sweep(
        {
            "output": str(tmp_path / "run"),
            "bases": [str(lab.base)],
            "tasks": ["no_such_task", "nor_this"],
            "include_path": [str(lab.tasks.folder)],
            "engine": FAKE,
        }
    )
    with pytest.raises(SpecError) as caught:
        api.run(sweep, pool="local")
    assert len(caught.value.problems) == 2
    assert "no_such_task" in str(caught.value)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_requests_under_other_scoring_settings_are_scored_again_not_answered_again(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    # tiny_lambada's perplexity has no closed-form stderr: it depends on the number of resamples.
    first = make_lab_sweep(engine=FAKE, tasks=["tiny_lambada"], evaluation={"bootstrap_iters": 100})
    second = make_lab_sweep(
        engine=FAKE,
        tasks=["tiny_lambada"],
        evaluation={"bootstrap_iters": 0},
        output=str(tmp_path / "second"),
        store=first.store,
    )
    api.run(first, pool="local")
    planned = api.plan(second)
    assert planned.plan.units == ()
    assert len(planned.plan.to_score) == 3
    api.run(second, pool="local")
    with_stderr, without = (
        [
            row["stderr"]
            for row in api.open(sweep.output).results.to_pylist()
            if row["metric"] == "perplexity"
        ]
        for sweep in (first, second)
    )
    assert all(value is not None for value in with_stderr)
    assert without == [None] * 3


def test_a_group_whose_members_are_under_several_settings_is_not_scored(
    make_lab_sweep: MakeSweep,
) -> None:
    sweep = make_lab_sweep(engine=FAKE, tasks=[{"name": "tiny_letters", "limit": 4}, "tiny_group"])
    report = api.run(sweep, pool="local")
    assert ("base", "tiny_group") in report.failed
    tables = api.open(sweep.output)
    assert not any(row["is_group"] for row in tables.results.to_pylist())
    assert not any(row["is_group"] for row in tables.gains.to_pylist())


def test_a_second_run_makes_a_lost_table_again(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    api.run(sweep, pool="local")
    gains = Path(sweep.output) / "tables" / "gains.parquet"
    before = gains.read_bytes()
    gains.unlink()
    api.run(sweep, pool="local")
    assert gains.read_bytes() == before


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_scores_are_made_again_in_the_same_run(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    api.run(sweep, pool="local")
    score = next(Path(sweep.store).glob("scores/*/*.parquet"))
    score.write_bytes(score.read_bytes()[:-40])
    shutil.rmtree(Path(sweep.output) / "tables")
    report = api.run(sweep, pool="local")
    assert (report.num_done, report.failed) == (3, {})
    assert api.open(sweep.output).cells["state"].to_pylist() == ["done"] * 3


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_that_plans_anew_has_one_beginning_and_one_end(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    api.run(sweep, pool="local")
    score = next(Path(sweep.store).glob("scores/*/*.parquet"))
    score.write_bytes(score.read_bytes()[:-40])
    shutil.rmtree(Path(sweep.output) / "tables")
    more = make_lab_sweep(engine=FAKE, tasks=["tiny_letters", "tiny_rolling"])
    seen: list[str] = []

    class Watching:
        def noted(self, line: Mapping[str, Any]) -> None:
            seen.append(line["event"])

        def answered(self, unit: object, answers: object) -> None:
            pass

    listener = api.Listener(watchers=(Watching(),))
    assert api.run(more, pool="local", listener=listener).num_done == 6
    turns = [event for event in seen if event.startswith("run_") and event != "run_unit"]
    assert turns == ["run_begins", "run_plans_anew", "run_ends"]
    assert seen[-1] == "run_ends"
    status = api.status(sweep.output)
    assert (status.runs, status.phase, status.count(CellState.DONE)) == (2, RunPhase.ENDED, 6)


def test_what_was_frozen_of_an_entry_stands_while_its_other_tasks_cannot_be_built(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    tasks = Path(shutil.copytree(lab.tasks.folder, tmp_path / "tasks"))
    broken = (tasks / "tiny_letters.yaml").read_text().replace("tiny_letters", "broken")
    (tasks / "broken.yaml").write_text(broken.replace("{{question}}", "{{no_such_field.x}}"))
    (tasks / "half.yaml").write_text("group: half\ntask: [tiny_mutual, broken]\n")
    sweep = make_lab_sweep(engine=FAKE, include_path=[str(tasks)], tasks=["half"])
    first = api.run(sweep, pool="local")
    assert (first.num_done, len(first.failed)) == (3, 3)
    # The data are gone: nothing can be built any more, and nothing needs to be.
    shutil.move(lab.tasks.data, tmp_path / "data")
    try:
        second = api.run(sweep, pool="local")
    finally:
        shutil.move(tmp_path / "data", lab.tasks.data)
    assert (second.num_done, second.num_reused, len(second.failed)) == (3, 3, 3)


def test_a_base_that_cannot_be_read_does_not_stop_another_one_with_a_chat_template(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    sweep = make_lab_sweep(
        engine=FAKE,
        tasks=["tiny_letters"],
        bases=[str(lab.base), str(tmp_path / "nowhere")],
        evaluation={"apply_chat_template": True},
    )
    report = api.run(sweep, pool="local")
    assert set(report.failed) == {("nowhere", "tiny_letters")}
    assert report.num_done == 1


def test_an_adapter_of_a_base_from_the_hubs_cache_is_checked_against_that_base(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    commit = "a" * 40
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(lab.base, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    adapters = [str(lab.adapters["small"])]
    sweep = make_lab_sweep(
        tasks=["tiny_letters"], bases=[{"path": "org/tiny", "adapters": adapters}]
    )
    report = api.run(sweep, pool="local")
    assert (report.num_done, report.failed) == (2, {})


def test_a_second_run_on_one_output_is_refused_while_the_first_one_lives(
    make_lab_sweep: MakeSweep,
) -> None:
    import json
    import os
    import platform

    sweep = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    Path(sweep.output).mkdir(parents=True)
    lease = {"host": platform.node(), "began_seconds": 0.0, "renewed_seconds": 0.0}
    # The parent of this process lives, and is not this process.
    held = {**lease, "pid": os.getppid()}
    (Path(sweep.output) / "lease.json").write_text(json.dumps(held))
    with pytest.raises(SetupError, match=str(os.getppid())):
        api.run(sweep, pool="local")
    gone = {**lease, "pid": 2**22 + 1}
    (Path(sweep.output) / "lease.json").write_text(json.dumps(gone))
    assert api.run(sweep, pool="local").num_done == 3
    assert not (Path(sweep.output) / "lease.json").exists()


def test_a_failure_that_lasts_is_not_tried_again(make_lab_sweep: MakeSweep) -> None:
    fail = {"do": "fail", "adapter": "small", "kind": "does_not_fit", "message": "too wide"}
    engine = {"kind": "fake", "options": {"script": {"events": [fail]}}}
    sweep = make_lab_sweep(engine=engine, tasks=["tiny_letters"])
    first = api.run(sweep, pool="local")
    assert api.plan(sweep).plan.units == ()
    second = api.run(sweep, pool="local")
    assert second.failed == first.failed != {}
    assert (second.num_done, second.num_reused) == (2, 2)
    rows = {row["subject"]: row for row in api.open(sweep.output).cells.to_pylist()}
    assert (rows["base/small"]["reason"], rows["base/small"]["message"]) == (
        "does_not_fit",
        "too wide",
    )
