"""Exports to trackers and to every_eval_ever, read back by the real clients, without a network."""

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from raypeft import api
from raypeft.api.every_eval_ever import export_every_eval_ever
from raypeft.api.trackers import Tracker, export_runs
from raypeft.errors import SetupError
from tests.support.made_up import MadeUp, write_made_up

SUBJECTS = ("base", "base/one", "base/two")
# The clients' own libraries warn of each other; what they write is looked at instead.
pytestmark = pytest.mark.filterwarnings("ignore")

BLOCK, HEADER = 32768, 7
"""W&B's offline file is a LevelDB log: records in blocks, each behind checksum, length and kind."""


@pytest.fixture
def output(tmp_path: Path) -> str:
    sweep = MadeUp(adapters=("one", "two"), effects={("one", "red"): 0.3}, documents=40)
    return write_made_up(tmp_path / "run", sweep)


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "client"))


def expected(output: str, subject: str) -> dict[str, float]:
    """Return the values and gains that a subject's run must hold."""
    tables = api.open(output)
    found = {
        f"{row['task']}/acc": row["value"]
        for row in tables.results.to_pylist()
        if row["subject"] == subject
    }
    for row in tables.gains.to_pylist():
        if f"{row['base']}/{row['adapter']}" == subject:
            found[f"gain/{row['task']}/acc"] = row["gain"]
            found[f"gain/{row['task']}/acc/p_corrected"] = row["p_corrected"]
    return found


def offline_records(folder: Path) -> Iterator[Any]:
    """Yield the records of a W&B run that was written offline."""
    pb: Any = import_module("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("*.wandb")
    data, place, parts = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block too short for a record
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield pb.Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_wandb_gets_a_run_for_each_subject_with_its_numbers(output: str, tmp_path: Path) -> None:
    runs = export_runs(output, tmp_path / "out", SUBJECTS, "wandb", title="night")
    assert tuple(runs) == SUBJECTS
    for subject, folder in runs.items():
        records = list(offline_records(folder))
        (run,) = [one.run for one in records if one.WhichOneof("record_type") == "run"][:1]
        assert (run.project, run.display_name) == ("night", subject)
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["subject"] == subject
        summary: dict[str, Any] = {}
        for record in records:
            if record.WhichOneof("record_type") == "summary":
                for item in record.summary.update:
                    name = item.key or "/".join(item.nested_key)
                    summary[name] = json.loads(item.value_json)
        values = expected(output, subject)
        assert {name: summary[name] for name in values} == values
        (table,) = folder.glob("files/media/table/results_*.json")
        assert len(json.loads(table.read_text())["data"]) == len(
            [row for row in api.open(output).results.to_pylist() if row["subject"] == subject]
        )


@pytest.mark.slow
def test_mlflow_reads_back_what_was_written(output: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    out = tmp_path / "out"
    files = export_runs(output, out, SUBJECTS, "mlflow", title="night")
    assert set(files.values()) == {out / "mlflow.db"}
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("night")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == set(SUBJECTS)
    for subject, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.params["subject"] == subject
        values = expected(output, subject)
        assert {name: run.data.metrics[name] for name in values} == values
    folder = client.download_artifacts(runs["base/one"].info.run_id, "gains.json", str(tmp_path))
    gains = json.loads(Path(folder).read_text())
    assert {row["task"] for row in gains} == {row["task"] for row in _gains_of(output, "one")}


def _gains_of(output: str, adapter: str) -> list[dict[str, Any]]:
    return [row for row in api.open(output).gains.to_pylist() if row["adapter"] == adapter]


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_names_that_a_tracker_would_make_one_are_refused(tracker: Tracker, tmp_path: Path) -> None:
    sweep = MadeUp(adapters=("one",), tasks=("a,b", "a_b"), documents=5)
    output = write_made_up(tmp_path / "run", sweep)
    with pytest.raises(SetupError, match=r"'a,b/acc' and 'a_b/acc' would both be called"):
        export_runs(output, tmp_path / "out", ("base",), tracker, title="night")


def test_every_eval_ever_gets_a_file_of_its_schema_for_each_subject(
    output: str, tmp_path: Path
) -> None:
    files = export_every_eval_ever(output, tmp_path / "out", SUBJECTS, title="my night")
    schema = json.loads(Path("tests/schemas/every_eval_ever.json").read_text())
    for subject, path in files.items():
        record = json.loads(path.read_text())
        jsonschema.Draft7Validator(schema).validate(record)
        assert path.parts[-5:-2] == ("data", "my_night", "base")
        found = {one["evaluation_name"]: one for one in record["evaluation_results"]}
        for row in api.open(output).results.to_pylist():
            if row["subject"] != subject:
                continue
            details = found[row["task"]]["score_details"]
            assert details["score"] == row["value"]
            assert details["uncertainty"]["standard_error"]["value"] == row["stderr"]
            assert details["uncertainty"]["num_samples"] == row["n"]


def test_every_eval_evers_own_validator_finds_nothing(output: str, tmp_path: Path) -> None:
    core = pytest.importorskip(
        "every_eval_ever.validator.validation_core",
        reason="every-eval-ever needs Python 3.12 and is not among the packages of the tests; "
        "tests/schemas holds its schema, trimmed",
    )
    for path in export_every_eval_ever(output, tmp_path / "out", SUBJECTS, title="night").values():
        report = core.validate_file(path)
        assert (report.errors, report.warnings) == ([], [])


def test_two_subjects_that_would_be_one_model_are_refused(tmp_path: Path) -> None:
    output = write_made_up(tmp_path / "run", MadeUp(adapters=("base",), documents=5))
    with pytest.raises(SetupError, match="would both be the model base/base"):
        export_every_eval_ever(output, tmp_path / "out", ("base", "base/base"), title="night")
