"""`raypeft-hf` as lm-eval calls it: the numbers of `--model hf`, with the proofs of a sweep."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from raypeft import api
from raypeft.engines.lm_eval_model import NAME, RaypeftHF, read_arguments
from raypeft.errors import CellError, SpecError
from tests.support.lab import Lab, MakeSweep

pytestmark = pytest.mark.torch

TASKS = ["tiny_mc", "tiny_mc_first_n", "tiny_letters", "tiny_lambada", "tiny_gen", "tiny_rolling"]
NATS = 1e-4


def evaluated(lab: Lab, model: str, **arguments: Any) -> Any:
    """Return what `lm_eval run` computes."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model=model,
        model_args={"pretrained": str(lab.base), **arguments},
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=[str(lab.tasks.folder)], include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )


def numbers(results: Any) -> dict[str, dict[str, Any]]:
    return {
        task: {
            key: value
            for key, value in metrics.items()
            if isinstance(value, int | float) and key != "name"
        }
        for task, metrics in results["results"].items()
    }


def responses(results: Any, task: str) -> list[Any]:
    samples = sorted(results["samples"][task], key=lambda sample: str(sample["doc_id"]))
    return [sample["resps"] for sample in samples]


def flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in flat(part)]
    return [value]


@pytest.fixture(scope="module")
def theirs(lab: Lab) -> dict[str, Any]:
    """What lm-eval's own model says; the vocabulary is the tokenizer's, so `peft=` keeps it."""
    small = str(lab.adapters["small"])
    return {"base": evaluated(lab, "hf"), "small": evaluated(lab, "hf", peft=small)}


def subject(lab: Lab, name: str) -> dict[str, str]:
    return {} if name == "base" else {"adapter": str(lab.adapters[name])}


@pytest.mark.parametrize("name", ["base", "small"])
def test_without_sharing_every_number_is_lm_evals_bit_for_bit(
    lab: Lab, theirs: dict[str, Any], name: str
) -> None:
    ours = evaluated(lab, NAME, sharing=False, **subject(lab, name))
    assert numbers(ours) == numbers(theirs[name])
    for task in TASKS:
        assert responses(ours, task) == responses(theirs[name], task)


@pytest.mark.parametrize("name", ["base", "small"])
def test_with_sharing_log_likelihoods_differ_by_rounding_only(
    lab: Lab, theirs: dict[str, Any], name: str
) -> None:
    ours = evaluated(lab, NAME, sharing=True, **subject(lab, name))
    for task in TASKS:
        found, expected = flat(responses(ours, task)), flat(responses(theirs[name], task))
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            if isinstance(right, float):
                assert left == pytest.approx(right, abs=NATS)
            else:
                assert left == right  # greedy flags and texts


def test_the_adapter_matters_and_the_results_name_it(lab: Lab, theirs: dict[str, Any]) -> None:
    assert numbers(theirs["base"]) != numbers(theirs["small"])
    model = RaypeftHF(pretrained=str(lab.base), peft=str(lab.adapters["small"]), device="cpu")
    info = model.get_model_info()
    assert info["adapter"] == str(lab.adapters["small"])
    assert len(info["adapter_digest"]) == 32


def test_contexts_are_computed_once_where_requests_share_them(lab: Lab) -> None:
    from lm_eval.api.instance import Instance

    context = "Question: which of these is a color?\nAnswer:"
    calls = [Instance("loglikelihood", {}, (context, c), i) for i, c in enumerate((" red", " fox"))]
    tokens = {}
    for sharing in (True, False):
        model = RaypeftHF(pretrained=str(lab.base), sharing=sharing, device="cpu")
        model.loglikelihood(calls)
        tokens[sharing] = model._tokens_seen
        assert model.loglikelihood([]) == []
    assert tokens[True] < tokens[False]


def test_an_adapter_that_does_not_fit_is_refused_while_the_model_is_made(
    lab: Lab, tmp_path: Path
) -> None:
    from tests.support.tiny import tiny_llama, tiny_lora

    other = tiny_llama(tmp_path / "other", hidden=32)
    adapter = tiny_lora(other, tmp_path / "lora")
    with pytest.raises(CellError) as raised:
        RaypeftHF(pretrained=str(lab.base), adapter=str(adapter), device="cpu")
    assert raised.value.kind == "does_not_fit"


def test_an_adapter_that_names_another_base_is_refused_as_in_a_sweep(
    lab: Lab, make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    from tests.support.tiny import tiny_llama, tiny_lora

    other = tiny_llama(tmp_path / "other", seed=9)  # of the same shapes
    adapter = str(tiny_lora(other, tmp_path / "lora", scale=0.3))
    with pytest.raises(CellError, match="any_base: true") as raised:
        RaypeftHF(pretrained=str(lab.base), adapter=adapter, device="cpu")
    assert raised.value.kind == "does_not_fit"
    assert str(other) in raised.value.message
    bases = [{"path": str(lab.base), "adapters": [adapter]}]
    failures = api.plan(make_lab_sweep(bases=bases, tasks=["tiny_mc"])).resolved.failures
    assert [failure.message for failure in failures.values()] == [raised.value.message]

    allowed = RaypeftHF(pretrained=str(lab.base), adapter=adapter, device="cpu", any_base=True)
    assert allowed.get_model_info()["adapter"] == adapter


def test_an_adapter_with_more_tokens_is_refused_by_name(lab: Lab, tmp_path: Path) -> None:
    from tests.support.tiny import grown_lora

    adapter = str(grown_lora(lab.base, tmp_path / "grown", 410))
    with pytest.raises(CellError, match="410 tokens, and the base has 400") as raised:
        RaypeftHF(pretrained=str(lab.base), adapter=adapter, device="cpu")
    assert raised.value.kind == "unsupported"


def test_answers_that_are_not_finite_are_an_error(lab: Lab) -> None:
    import torch
    from lm_eval.api.instance import Instance

    model = RaypeftHF(pretrained=str(lab.base), device="cpu", sharing=False)
    with torch.no_grad():
        model._model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CellError, match="NaN or infinite"):
        model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a red fox",), 0)])
    with pytest.raises(CellError, match="NaN or infinite"):
        model.loglikelihood([Instance("loglikelihood", {}, ("a red", " fox"), 0)])


def test_several_processes_are_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="answers in one process"):
        RaypeftHF(pretrained=str(lab.base))


def test_arguments_are_those_of_hf_where_they_mean_the_same() -> None:
    read = read_arguments({"pretrained": "b", "peft": "a", "batch_size": "16", "device": None})
    assert (read.adapter, read.batch_size) == ("a", 16)
    assert (read.softmax_dtype, read.sharing) == (None, False)
    assert read_arguments({"pretrained": "b", "peft": "a", "adapter": "a"}).adapter == "a"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "pretrained: is missing"),
        ({"adaptor": "a"}, "did you mean 'adapter'?"),
        ({"parallelize": True}, "known are pretrained, adapter"),
        ({"batch_size": "auto"}, "batch_size: is 'auto'"),
        ({"batch_size": "0"}, "batch_size: is '0'"),
        ({"peft": "a", "adapter": "b"}, "peft: is 'a', and adapter is 'b'"),
        ({"sharing": "no"}, "sharing: is 'no'; allowed are true and false"),
    ],
)
def test_arguments_that_cannot_be_meant_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as raised:
        read_arguments(arguments if not arguments else {"pretrained": "b", **arguments})
    assert words in str(raised.value)


def test_the_entry_point_that_newer_releases_look_up_is_the_model() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    declared = project["project"]["entry-points"]["lm_eval.models"][NAME]
    assert declared == f"{RaypeftHF.__module__}:{RaypeftHF.__name__}"


def test_the_name_is_known_beside_lm_evals_own_and_looking_it_up_is_cheap() -> None:
    code = (
        "import sys, raypeft.engines.lm_eval_model\n"
        "from lm_eval.api.registry import get_model, model_registry\n"
        "assert get_model('raypeft-hf').__name__ == 'RaypeftHF'\n"
        "assert 'hf' in model_registry\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from raypeft.cli import main; main()", "lm-eval", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_hands_over_everything_and_passes_the_exit_code_on(tmp_path: Path) -> None:
    shown = command("run", "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "--model_args" in shown.stdout
    wrong = command("run", "--no-such-option", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "--no-such-option" in wrong.stderr


@pytest.mark.slow
def test_the_command_evaluates_with_raypefts_model(
    lab: Lab, theirs: dict[str, Any], tmp_path: Path
) -> None:
    done = command(
        *("run", "--model", NAME, "--tasks", "tiny_letters", "--device", "cpu"),
        *("--include_path", str(lab.tasks.folder), "--batch_size", "4"),
        *("--model_args", f"pretrained={lab.base},adapter={lab.adapters['small']}"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    accuracy = numbers(theirs["small"])["tiny_letters"]["acc,none"]
    assert f"|{accuracy:6.4f}|" in done.stdout.replace(" ", "")
