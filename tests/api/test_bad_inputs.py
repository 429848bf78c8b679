"""Bad input, one kind at a time: a named reason and a message, and the good cells go on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from raypeft import api
from raypeft.core.records import FailureKind
from raypeft.errors import SetupError, SpecError
from tests.support.lab import Lab, MakeSweep

pytestmark = pytest.mark.torch

Spoil = Callable[[Path], None]
WEIGHTS = "adapter_model.safetensors"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an adapter's tensors."""
    tensors = dict(safetensors.numpy.load_file(folder / WEIGHTS))
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def corrupt(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 400)


def pickled(folder: Path) -> None:
    import torch

    torch.save({"x": torch.zeros(1)}, folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def wrong_shapes(folder: Path) -> None:
    edit(folder, lambda t: t.update({k: np.concatenate([v, v], axis=1) for k, v in t.items()}))


def missing_tensors(folder: Path) -> None:
    edit(folder, lambda t: [t.pop(k) for k in list(t) if ".layers.1." in k])


def extra_tensors(folder: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        for key in [k for k in tensors if ".layers.1." in k]:
            tensors[key.replace(".layers.1.", ".layers.9.")] = tensors[key]

    edit(folder, add)


def renamed(folder: Path) -> None:
    edit(folder, lambda t: [t.update({k.replace("layers", "blocks"): t.pop(k)}) for k in list(t)])


def with_nan(folder: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        key = next(iter(tensors))
        tensors[key] = tensors[key].copy()
        tensors[key].flat[3] = np.nan

    edit(folder, spoil)


def with_inf(folder: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        key = next(iter(tensors))
        tensors[key] = tensors[key].copy()
        tensors[key].flat[0] = np.inf

    edit(folder, spoil)


def all_zero(folder: Path) -> None:
    edit(folder, lambda t: t.update({k: v * 0 for k, v in t.items() if "lora_B" in k}))


def unknown_peft_type(folder: Path) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "peft_type": "NOT_YET_INVENTED"}))


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (no_config, FailureKind.UNREADABLE, "adapter_config.json"),
        (no_weights, FailureKind.UNREADABLE, WEIGHTS),
        (truncated, FailureKind.UNREADABLE, WEIGHTS),
        (corrupt, FailureKind.UNREADABLE, WEIGHTS),
        (pickled, FailureKind.UNSAFE, "allow_pickle"),
        (wrong_shapes, FailureKind.DOES_NOT_FIT, "q_proj"),
        (missing_tensors, FailureKind.DOES_NOT_FIT, "layers.1"),
        (extra_tensors, FailureKind.DOES_NOT_FIT, "layers.9"),
        (renamed, FailureKind.DOES_NOT_FIT, "blocks"),
        (with_nan, FailureKind.NOT_FINITE, "NaN"),
        (with_inf, FailureKind.NOT_FINITE, "inf"),
        (all_zero, FailureKind.NO_EFFECT, "zero"),
        (unknown_peft_type, FailureKind.UNSUPPORTED, "NOT_YET_INVENTED"),
    ],
)
def test_a_bad_adapter_is_a_named_failure_and_the_others_go_on(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path, spoil: Spoil, kind: str, words: str
) -> None:
    bad = Path(shutil.copytree(lab.adapters["small"], tmp_path / "bad"))
    spoil(bad)
    sweep = make_lab_sweep(
        tasks=["tiny_letters"],
        bases=[{"path": str(lab.base), "adapters": [str(bad), str(lab.adapters["large"])]}],
    )
    report = api.run(sweep, pool="local")
    assert {subject for subject, _ in report.failed} == {"base/bad"}
    failure = report.failed["base/bad", "tiny_letters"]
    assert failure.kind == kind
    assert words in failure.message
    assert report.num_done == 2
    rows = {row["subject"]: row for row in api.open(sweep.output).cells.to_pylist()}
    assert (rows["base/bad"]["state"], rows["base/bad"]["reason"]) == ("failed", str(kind))
    assert rows["base/large"]["state"] == "done"


def test_an_adapter_of_another_base_does_not_fit(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    from tests.support.tiny import tiny_llama, tiny_lora

    other = tiny_llama(tmp_path / "wider", hidden=32)
    stranger = tiny_lora(other, tmp_path / "stranger", scale=0.3)
    sweep = make_lab_sweep(
        tasks=["tiny_letters"], bases=[{"path": str(lab.base), "adapters": [str(stranger)]}]
    )
    report = api.run(sweep, pool="local")
    failure = report.failed["base/stranger", "tiny_letters"]
    assert failure.kind == FailureKind.DOES_NOT_FIT


def test_a_base_that_is_not_there_fails_its_cells_and_the_other_base_goes_on(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    sweep = make_lab_sweep(tasks=["tiny_letters"], bases=[str(lab.base), str(tmp_path / "nowhere")])
    report = api.run(sweep, pool="local")
    failure = report.failed["nowhere", "tiny_letters"]
    assert str(tmp_path / "nowhere") in failure.message
    assert report.num_done == 1


def test_a_sweep_without_any_readable_base_is_refused_before_anything_starts(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="nowhere"):
        api.run(make_lab_sweep(bases=[str(tmp_path / "nowhere")]), pool="local")


def test_a_base_that_needs_its_own_code_says_so(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(lab.base, tmp_path / "remote"))
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoModelForCausalLM": "model.Homemade"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.py").write_text("raise SystemExit('this code must not run')\n")
    with pytest.raises(SpecError, match="trust_remote_code"):
        api.run(make_lab_sweep(bases=[str(base)]), pool="local")


def test_a_task_that_cannot_be_built_and_an_empty_dataset_are_named(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    tasks = Path(shutil.copytree(lab.tasks.folder, tmp_path / "tasks"))
    good = (tasks / "tiny_letters.yaml").read_text()
    (tmp_path / "empty.jsonl").write_text("")
    broken = good.replace("task: tiny_letters", "task: broken")
    (tasks / "broken.yaml").write_text(broken.replace("{{question}}", "{{no_such_field.x}}"))
    empty = good.replace("task: tiny_letters", "task: empty")
    empty = empty.replace(str(lab.tasks.data / "mc_test.jsonl"), str(tmp_path / "empty.jsonl"))
    (tasks / "empty.yaml").write_text(empty)
    sweep = make_lab_sweep(
        engine={"kind": "fake"},
        include_path=[str(tasks)],
        tasks=["broken", "empty", "tiny_lettres", "tiny_rolling"],
    )
    report = api.run(sweep, pool="local")
    failures = {task: failure for (subject, task), failure in report.failed.items()}
    assert set(failures) == {"broken", "empty", "tiny_lettres"}
    assert "tiny_letters" in failures["tiny_lettres"].message  # the nearest known name
    assert report.num_done == 3


def test_a_task_that_runs_generated_code_is_refused_unless_allowed(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    tasks = Path(shutil.copytree(lab.tasks.folder, tmp_path / "tasks"))
    unsafe = (tasks / "tiny_letters.yaml").read_text() + "unsafe_code: true\n"
    (tasks / "risky.yaml").write_text(unsafe.replace("task: tiny_letters", "task: risky"))
    changes: dict[str, Any] = {
        "engine": {"kind": "fake"},
        "include_path": [str(tasks)],
        "tasks": ["risky", "tiny_rolling"],
    }
    report = api.run(make_lab_sweep(**changes), pool="local")
    failure = report.failed["base", "risky"]
    assert failure.kind == FailureKind.UNSAFE
    assert "confirm_run_unsafe_code" in failure.message
    allowed = make_lab_sweep(**changes, evaluation={"confirm_run_unsafe_code": True})
    assert api.run(allowed, pool="local").failed == {}


def test_answers_that_are_not_finite_void_the_cell(make_lab_sweep: MakeSweep) -> None:
    script = {"events": [{"do": "nan", "adapter": "small"}]}
    sweep = make_lab_sweep(
        engine={"kind": "fake", "options": {"script": script}}, tasks=["tiny_letters"]
    )
    report = api.run(sweep, pool="local")
    failure = report.failed["base/small", "tiny_letters"]
    assert failure.kind == FailureKind.NOT_FINITE
    assert {row["subject"] for row in api.open(sweep.output).results.to_pylist()} == {
        "base",
        "base/large",
    }


def test_an_output_that_cannot_be_written_is_refused_first(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    sweep = make_lab_sweep(output=str(tmp_path / "file" / "run"), store=str(tmp_path / "store"))
    with pytest.raises(SetupError, match="file"):
        api.run(sweep, pool="local")


def test_two_adapters_of_one_name_are_refused(lab: Lab, tmp_path: Path) -> None:
    for place in ("a", "b"):
        shutil.copytree(lab.adapters["small"], tmp_path / place / "same")
    file = tmp_path / "sweep.yaml"
    adapters = [f"{tmp_path}/a/same", f"{tmp_path}/b/*"]
    values = {
        "output": "run",
        "tasks": ["tiny_letters"],
        "bases": [{"path": str(lab.base), "adapters": adapters}],
    }
    file.write_text(json.dumps(values))
    with pytest.raises(SpecError, match="same") as caught:
        api.load_sweep(file)
    assert all(path in str(caught.value) for path in ("a/same", "b/same", "name"))
