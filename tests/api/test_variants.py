"""Adapters that are merged, speak with their own tokenizer, or know more tokens, in a sweep."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raypeft import api
from raypeft.core.records import FailureKind
from tests.support.lab import Lab, MakeSweep
from tests.support.tiny import CHAT_TEMPLATE, grown_lora, more_words, pickled, tiny_tokenizer

pytestmark = pytest.mark.torch

TASK = "tiny_letters"
Entry = dict[str, Any]
RunWith = Callable[..., api.RunReport]


@pytest.fixture
def run_with(make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path) -> RunWith:
    """Return a function that runs a sweep of one task over the lab's base with these adapters."""

    def run(*adapters: Entry, base: Entry | None = None, **changes: Any) -> api.RunReport:
        bases = [{"path": str(lab.base), "adapters": list(adapters)} | (base or {})]
        changes.setdefault("tasks", [TASK])
        return api.run(make_lab_sweep(bases=bases, **changes), pool="local")

    return run


def rows(report: api.RunReport, table: str, **where: Any) -> list[dict[str, Any]]:
    found = getattr(api.open(report.output), table).to_pylist()
    return [row for row in found if all(row[name] == value for name, value in where.items())]


def test_merged_and_unmerged_are_two_subjects_and_the_gain_says_which(
    run_with: RunWith, lab: Lab
) -> None:
    path = str(lab.adapters["small"])

    report = run_with({"path": path}, {"path": path, "name": "merged", "merge": True})

    assert report.failed == {}
    cells = {row["adapter"]: row for row in rows(report, "cells", task=TASK)}
    assert cells["small"]["cell"] != cells["merged"]["cell"]
    assert "merged, deviates by at most" in cells["merged"]["path"]
    assert "merged" not in cells["small"]["path"]
    gains = {row["adapter"]: row for row in rows(report, "gains", task=TASK, metric="acc")}
    assert gains["merged"]["gain"] == gains["small"]["gain"]
    assert "merged into float32 weights" in gains["merged"]["reason"]
    assert "merged" not in gains["small"]["reason"]
    assert gains["merged"]["verdict"] != "refused"


def test_what_cannot_be_merged_fails_by_name_and_the_rest_goes_on(
    run_with: RunWith, lab: Lab, tmp_path: Path
) -> None:
    from tests.engines.zoo import make_adapter

    folder = make_adapter(lab.base, tmp_path / "prompt", "prompt_tuning")

    report = run_with({"path": str(folder), "name": "prompt", "merge": True})

    failure = report.failed["base/prompt", TASK]
    assert failure.kind is FailureKind.UNSUPPORTED
    assert "PROMPT_TUNING" in failure.message
    assert report.num_done == 1


def with_tokenizer(adapter: Path, folder: Path, tokenizer: Path) -> Path:
    """Copy an adapter with a tokenizer beside it."""
    shutil.copytree(adapter, folder)
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "special", "chat")):
            shutil.copy(file, folder)
    return folder


def test_an_own_tokenizer_equal_to_the_bases_changes_nothing(
    run_with: RunWith, lab: Lab, tmp_path: Path
) -> None:
    folder = with_tokenizer(lab.adapters["small"], tmp_path / "same", lab.base)

    report = run_with(
        {"path": str(lab.adapters["small"])},
        {"path": str(folder), "name": "same", "tokenizer": "own"},
        evaluation={"apply_chat_template": True},
    )

    cells = {row["adapter"]: row["cell"] for row in rows(report, "cells", task=TASK)}
    assert cells["same"] == cells["small"]
    assert {row["verdict"] for row in rows(report, "gains")} != {"refused"}


@pytest.mark.parametrize("chat", [False, True])
def test_another_tokenizer_is_used_and_its_gain_is_refused_by_name(
    run_with: RunWith, lab: Lab, tmp_path: Path, chat: bool
) -> None:
    other = tiny_tokenizer(tmp_path / "tokenizer", vocab_size=300)
    template = other / "chat_template.jinja"
    template.write_text(CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n"))
    folder = with_tokenizer(lab.adapters["small"], tmp_path / "own", other)

    report = run_with(
        {"path": str(lab.adapters["small"])},
        {"path": str(folder), "name": "own", "tokenizer": "own"},
        evaluation={"apply_chat_template": chat},
        tasks=["tiny_rolling"] if not chat else [TASK],
    )

    assert report.failed == {}
    cells = {row["adapter"]: row for row in rows(report, "cells")}
    assert (cells["own"]["request_set"] != cells["small"]["request_set"]) is chat
    assert cells["own"]["tokens"] != cells["small"]["tokens"]
    gains = {row["adapter"]: row for row in rows(report, "gains")}
    assert gains["own"]["verdict"] == "refused"
    assert "tokenizer" in gains["own"]["reason"]
    assert gains["small"]["verdict"] != "refused"


def test_an_adapter_without_a_tokenizer_cannot_bring_its_own(run_with: RunWith, lab: Lab) -> None:
    report = run_with({"path": str(lab.adapters["small"]), "name": "x", "tokenizer": "own"})

    failure = report.failed["base/x", TASK]
    assert "tokenizer: own" in failure.message


def test_a_larger_vocabulary_is_compared_with_a_baseline_enlarged_alike(
    run_with: RunWith, lab: Lab, tmp_path: Path
) -> None:
    adapters = [grown_lora(lab.base, tmp_path / name, 410) for name in ("a", "b")]

    report = run_with(*({"path": str(path)} for path in [*adapters, lab.adapters["small"]]))

    assert report.failed == {}
    cells = rows(report, "cells", task=TASK)
    assert [row["subject"] for row in cells] == [
        "base",
        "base@410",
        "base/a",
        "base/b",
        "base/small",
    ]
    results = {
        row["subject"]: json.loads(row["numerics"]).get("vocab_size")
        for row in rows(report, "results", task=TASK)
    }
    assert results == {
        "base": None,
        "base@410": 410,
        "base/a": 410,
        "base/b": 410,
        "base/small": None,
    }
    assert {row["verdict"] for row in rows(report, "gains")} != {"refused"}
    assert [row["adapter"] for row in rows(report, "gains", metric="acc")] == ["a", "b", "small"]
    (shown,) = api.report(report.output).bases
    assert len(shown.baseline) == 1


def test_pickled_weights_with_a_larger_vocabulary_are_recognised(
    run_with: RunWith, lab: Lab, tmp_path: Path
) -> None:
    safe = grown_lora(lab.base, tmp_path / "safe", 410)
    folder = pickled(safe, tmp_path / "pickled")

    report = run_with(
        {"path": str(safe)}, {"path": str(folder), "name": "pickled", "allow_pickle": True}
    )

    assert report.failed == {}
    cells = {row["subject"]: row for row in rows(report, "cells", task=TASK)}
    assert list(cells) == ["base", "base@410", "base/safe", "base/pickled"]
    gains = {row["adapter"]: row for row in rows(report, "gains", task=TASK, metric="acc")}
    assert gains["pickled"]["verdict"] != "refused"
    assert gains["pickled"]["gain"] == gains["safe"]["gain"]


def test_pickled_weights_that_hold_code_are_named_before_a_base_is_loaded(
    run_with: RunWith, lab: Lab, tmp_path: Path
) -> None:
    import torch

    folder = pickled(lab.adapters["small"], tmp_path / "unsafe")
    torch.save({"weight": Path("/")}, folder / "adapter_model.bin")

    report = run_with({"path": str(folder), "name": "unsafe", "allow_pickle": True})

    failure = report.failed["base/unsafe", TASK]
    assert failure.kind is FailureKind.UNSAFE
    assert "more than tensors" in failure.message


@pytest.mark.parametrize("chat", [False, True])
def test_a_tokenizer_with_more_tokens_than_the_base_has_a_baseline_that_hears_the_same(
    run_with: RunWith, lab: Lab, tmp_path: Path, chat: bool
) -> None:
    # In one order or the other, tokens are added to the base's: the base's keep their numbers.
    for name, added in (("first", ("house", "cat")), ("second", ("cat", "house"))):
        folder = grown_lora(lab.base, tmp_path / name, 402)
        more_words(lab.base, folder, added)
    template = tmp_path / "second" / "chat_template.jinja"
    template.write_text(CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n"))
    entries = [
        {"path": str(tmp_path / "first"), "tokenizer": "own"},
        {"path": str(tmp_path / "first"), "name": "deaf"},
        {"path": str(tmp_path / "second"), "tokenizer": "own"},
    ]

    report = run_with(*entries, tasks=["tiny_rolling"], evaluation={"apply_chat_template": chat})

    assert report.failed == {}
    cells = {row["subject"]: row for row in rows(report, "cells")}
    assert len(cells) == 1 + 3 + 3
    numerics = {
        row["subject"]: json.loads(row["numerics"])
        for row in rows(report, "results", task="tiny_rolling")
    }
    words = {name: numerics[f"base/{name}"].get("tokenizer") for name in ("first", "second")}
    for name, digest in words.items():
        baseline = f"base@402-{digest[:8]}"
        assert numerics[baseline] == numerics[f"base/{name}"]
        assert cells[baseline]["request_set"] == cells[f"base/{name}"]["request_set"]
        assert cells[baseline]["tokens"] == cells[f"base/{name}"]["tokens"]
    assert words["first"] != words["second"]
    assert (cells["base/second"]["request_set"] != cells["base"]["request_set"]) is chat
    gains = {row["adapter"]: row for row in rows(report, "gains")}
    assert "refused" not in {gains[name]["verdict"] for name in ("first", "deaf", "second")}
    assert cells[f"base@402-{words['first'][:8]}"]["tokens"] != cells["base@402"]["tokens"] or chat


def test_merged_with_its_own_larger_tokenizer_it_has_the_same_baseline_and_gain(
    run_with: RunWith, lab: Lab, tmp_path: Path
) -> None:
    folder = grown_lora(lab.base, tmp_path / "own", 402)
    more_words(lab.base, folder, ("house", "cat"))
    entry = {"path": str(folder), "tokenizer": "own"}

    report = run_with(entry, entry | {"name": "merged", "merge": True})

    assert report.failed == {}
    cells = {row["subject"]: row for row in rows(report, "cells", task=TASK)}
    assert len(cells) == 4
    assert "merged, deviates by at most" in cells["base/merged"]["path"]
    gains = {row["adapter"]: row for row in rows(report, "gains", task=TASK, metric="acc")}
    assert gains["merged"]["verdict"] != "refused"
    assert gains["merged"]["gain"] == gains["own"]["gain"]
    assert gains["merged"]["baseline_value"] == gains["own"]["baseline_value"]
    assert "merged into float32 weights" in gains["merged"]["reason"]


def test_a_larger_tokenizer_of_other_numbers_has_no_baseline_and_its_gain_says_why(
    run_with: RunWith, lab: Lab, tmp_path: Path
) -> None:
    other = more_words(
        tiny_tokenizer(tmp_path / "other", vocab_size=300),
        tmp_path / "other",
        tuple(f"word{number}" for number in range(110)),
    )
    folder = with_tokenizer(lab.adapters["small"], tmp_path / "own", other)

    report = run_with({"path": str(folder), "name": "own", "tokenizer": "own"})

    assert report.failed == {}
    assert [row["subject"] for row in rows(report, "cells", task=TASK)] == ["base", "base/own"]
    (gain,) = rows(report, "gains", task=TASK, metric="acc")
    assert gain["verdict"] == "refused"
    assert "tokenizer" in gain["reason"]


def test_training_in_another_precision_is_a_warning_in_run_and_plan(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(lab.adapters["small"], folder)
    (folder / "training_args.json").write_text('{"load_in_4bit": true}')
    bases = [{"path": str(lab.base), "adapters": [str(folder)]}]
    said: list[str] = []

    sweep = make_lab_sweep(bases=bases, tasks=[TASK], engine={"kind": "fake"})
    planned = api.plan(sweep, listener=api.Listener(say=said.append))

    assert any("bnb-4bit" in text and "base/quantised" in text for text in said)
    assert "bnb-4bit" in planned.resolved.warnings["base/quantised"]
    said.clear()
    report = api.run(sweep, pool="local", listener=api.Listener(say=said.append))
    assert any("bnb-4bit" in text for text in said)
    assert report.failed == {}


def test_a_quantised_base_is_noted_in_the_plan_and_fails_where_it_cannot_be_loaded(
    make_lab_sweep: MakeSweep, lab: Lab
) -> None:
    entry = {"path": str(lab.adapters["small"]), "merge": True}
    bases = [{"path": str(lab.base), "quantization": "bnb-4bit", "adapters": [entry]}]
    sweep = make_lab_sweep(bases=bases, tasks=[TASK], hardware={"gpus": 0})

    planned = api.plan(sweep)
    report = api.run(sweep, pool="local")

    assert "needs a GPU" in planned.resolved.warnings["base"]
    assert report.failed["base", TASK].kind is FailureKind.LOAD_FAILED
    merging = report.failed["base/small", TASK]
    assert merging.kind is FailureKind.UNSUPPORTED
    assert "quantised" in merging.message
