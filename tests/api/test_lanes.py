"""A plan says how each adapter shares its base; an adapter of another base needs a word for it."""

import json
import shutil
from pathlib import Path

import pytest

from raypeft import api
from raypeft.api.views import plan_records
from raypeft.core.records import FailureKind
from tests.support.lab import Lab, MakeSweep

pytestmark = pytest.mark.torch


def test_a_plan_says_the_lane_of_every_adapter_and_why(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    from tests.support.tiny import tiny_lora

    isolated = tiny_lora(lab.base, tmp_path / "isolated", modules_to_save=["lm_head"])
    adapters = [str(lab.adapters["small"]), str(isolated)]
    sweep = make_lab_sweep(
        tasks=["tiny_letters"], bases=[{"path": str(lab.base), "adapters": adapters}]
    )

    why = {record["subject"]: record["why"] for record in plan_records(api.plan(sweep))}

    assert "lane" not in why["base"]
    assert why["base/small"].endswith("lane shared: plain LORA")
    assert "lane isolated: modules_to_save changes the base" in why["base/isolated"]


@pytest.mark.parametrize("any_base", [False, True])
def test_an_adapter_of_a_twin_of_the_base_needs_permission(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path, any_base: bool
) -> None:
    from tests.support.tiny import tiny_llama

    twin = tiny_llama(tmp_path / "twin", seed=7)
    folder = Path(shutil.copytree(lab.adapters["small"], tmp_path / "stranger"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(twin)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    entry = {"path": str(folder), "any_base": any_base}
    sweep = make_lab_sweep(
        tasks=["tiny_letters"], bases=[{"path": str(lab.base), "adapters": [entry]}]
    )

    report = api.run(sweep, pool="local")

    if any_base:
        assert not report.failed
        return
    failure = report.failed["base/stranger", "tiny_letters"]
    assert failure.kind is FailureKind.DOES_NOT_FIT
    assert all(words in failure.message for words in (str(twin), str(lab.base), "any_base: true"))
