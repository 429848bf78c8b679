import shutil
from pathlib import Path

import pytest

from raypeft import api
from raypeft.errors import SpecError, StoreError
from tests.support.lab import Lab, MakeSweep

pytestmark = pytest.mark.torch

FAKE = {"kind": "fake"}


def test_a_comparison_across_other_scoring_code_is_refused(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    tasks = Path(shutil.copytree(lab.tasks.folder, tmp_path / "tasks"))
    first = make_lab_sweep(engine=FAKE, include_path=[str(tasks)], tasks=["tiny_function"])
    api.run(first, pool="local")
    functions = tasks / "tiny_functions.py"
    functions.write_text(functions.read_text().replace("len(text)", "100 + len(text)"))
    second = make_lab_sweep(
        engine=FAKE,
        include_path=[str(tasks)],
        tasks=["tiny_function"],
        output=str(tmp_path / "second"),
        store=first.store,
    )
    api.run(second, pool="local")
    gains = api.compare(first.output, "base", f"{second.output}::base")
    assert gains
    assert all(gain.verdict == "refused" and "scoring" in gain.reason for gain in gains)


def test_the_same_task_in_another_folder_may_be_compared(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    first = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    api.run(first, pool="local")
    tasks = Path(shutil.copytree(lab.tasks.folder, tmp_path / "copy"))
    for yaml in tasks.glob("*.yaml"):
        yaml.write_text(yaml.read_text().replace(str(lab.tasks.data), str(tasks / "data")))
    second = make_lab_sweep(
        engine=FAKE,
        include_path=[str(tasks)],
        tasks=["tiny_letters"],
        output=str(tmp_path / "second"),
        store=first.store,
    )
    api.run(second, pool="local")
    gains = api.compare(first.output, "base", f"{second.output}::base/small")
    assert gains
    assert [gain.reason for gain in gains if gain.verdict == "refused"] == []


def test_a_run_that_has_not_ended_is_reported_as_far_as_it_is(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    api.run(sweep, pool="local")
    # As a night looks that was killed before it wrote its tables, with one cell still open.
    shutil.rmtree(Path(sweep.output) / "tables")
    next(Path(sweep.store).glob("scores/*/*.parquet")).unlink()
    morning = api.report(sweep.output)
    assert (morning.num_cells, morning.num_done, morning.num_open) == (3, 2, 1)


def test_status_of_a_place_where_nothing_ran_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        api.status(str(tmp_path / "nowhere"))


def test_export_and_compare_name_the_subjects_there_are(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    sweep = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    api.run(sweep, pool="local")
    with pytest.raises(SpecError, match="base/small"):
        api.compare(sweep.output, "base", "base/smal")
    with pytest.raises(SpecError, match="base/small"):
        api.export(sweep.output, tmp_path / "out", subjects=["base/smal"])


def test_a_sweeps_tables_are_opened_from_the_package(make_lab_sweep: MakeSweep) -> None:
    import raypeft

    sweep = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    api.run(sweep, pool="local")
    tables = raypeft.open(sweep.output)
    assert tables.results.num_rows == 3
    assert tables.gains.num_rows == 2
    with pytest.raises(AttributeError, match="opne"):
        _ = raypeft.opne
