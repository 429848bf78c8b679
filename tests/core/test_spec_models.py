from typing import Any

import pytest

from raypeft.core.records import EvaluationSettings
from raypeft.core.spec import Sweep, make_sweep


def sweep(**values: Any) -> Sweep:
    return make_sweep({"output": "runs/x", "bases": ["gpt2"], "tasks": ["arc_easy"]} | values)


def settings(evaluation: dict[str, Any], **task: Any) -> EvaluationSettings:
    made = sweep(evaluation=evaluation, tasks=[{"name": "t", **task}])
    return made.settings(made.tasks[0])


@pytest.mark.parametrize(
    ("output", "store"),
    [
        ("runs/overnight", "runs/store"),
        ("runs/overnight/", "runs/store"),
        ("overnight", "store"),
        ("/overnight", "/store"),
        ("./overnight", "./store"),
        (".", "./store"),
        ("..", "../store"),
        ("/", "/store"),
        ("s3://bucket/runs/x", "s3://bucket/runs/store"),
        ("s3://bucket/x", "s3://bucket/store"),
        ("s3://bucket", "s3://bucket/store"),
        ("s3://bucket/runs/x?region=eu-1", "s3://bucket/runs/store?region=eu-1"),
        ("file:///data/runs/x", "file:///data/runs/store"),
        ("gs://[odd/x", "gs://[odd/store"),
    ],
)
def test_the_store_lies_beside_the_output_by_default(output: str, store: str) -> None:
    assert sweep(output=output).store == store


def test_a_base_is_named_by_its_path_and_gives_its_subjects_their_ids() -> None:
    base = sweep(
        bases=[{"path": "meta-llama/Llama-3.1-8B", "adapters": [{"path": "a/b", "name": "r64"}]}]
    ).bases[0]
    assert base.name == "Llama-3.1-8B"
    assert base.subject_id() == "Llama-3.1-8B"
    assert base.subject_id(base.adapters[0]) == "Llama-3.1-8B/r64"


def test_plain_settings_are_lm_evals_own() -> None:
    assert settings({}) == EvaluationSettings()


def test_a_task_inherits_overrides_or_resets_each_setting() -> None:
    common = {"num_fewshot": 5, "limit": 100, "gen_kwargs": {"max_gen_toks": 8, "top_k": 3}}
    inherited = settings(common, limit="inherit")
    assert (inherited.num_fewshot, inherited.limit) == (5, 100)
    assert inherited.gen_kwargs == {"max_gen_toks": 8, "top_k": 3}
    own = settings(common, num_fewshot=0, limit=0.5, gen_kwargs={"max_gen_toks": 16})
    assert (own.num_fewshot, own.limit, own.gen_kwargs) == (0, 0.5, {"max_gen_toks": 16})
    reset = settings(common, num_fewshot=None, limit=None, gen_kwargs=None)
    assert (reset.num_fewshot, reset.limit, reset.gen_kwargs) == (None, None, None)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(None, (0, 1234, 1234, 1234)), (7, (7, 7, 7, 7)), ([1, 2, 3, 4], (1, 2, 3, 4))],
)
def test_seeds_are_lm_evals_or_one_for_all_or_four(seed: object, expected: tuple[int, ...]) -> None:
    got = settings({"seed": seed})
    assert (got.random_seed, got.numpy_seed, got.torch_seed, got.fewshot_seed) == expected


@pytest.mark.parametrize(
    ("template", "multiturn", "expected"),
    [
        (False, None, False),
        (True, None, True),
        ("tool_use", None, True),
        (True, False, False),
        (True, True, True),
    ],
)
def test_shots_are_turns_where_a_chat_template_is_on_unless_told(
    template: object, multiturn: object, expected: bool
) -> None:
    got = settings({"apply_chat_template": template, "fewshot_as_multiturn": multiturn})
    assert got.apply_chat_template == template
    assert got.fewshot_as_multiturn is expected


def test_everything_else_of_evaluation_reaches_the_settings() -> None:
    got = settings(
        {
            "system_instruction": "Be brief.\nBe kind.",
            "bootstrap_iters": 0,
            "confirm_run_unsafe_code": True,
        }
    )
    assert got.system_instruction == "Be brief.\nBe kind."
    assert got.bootstrap_iters == 0
    assert got.confirm_run_unsafe_code


def test_quantities_are_given_in_plain_units() -> None:
    made = sweep(hardware={"memory": "8GiB"}, schedule={"unit_timeout": "90s"})
    assert made.hardware.memory_bytes == 8 * 2**30
    assert made.schedule.unit_timeout_seconds == 90
    assert sweep().hardware.memory_bytes is None
    assert sweep().schedule.unit_timeout_seconds == 3600


def test_a_sweep_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        sweep().output = "elsewhere"


def test_a_certificate_has_a_tolerance_by_dtype_unless_one_is_given() -> None:
    given = sweep(engine={"kind": "vllm", "vllm": {"certificate_tolerance_nats": 0.1}}).engine.vllm
    default = sweep(engine={"kind": "vllm"}).engine.vllm
    assert given.tolerance_nats("bfloat16") == 0.1
    assert default.tolerance_nats("float32") == 2e-3
    assert default.tolerance_nats("bfloat16") > default.tolerance_nats("float16") > 2e-3


def test_only_what_is_set_of_vllms_settings_reaches_an_engine() -> None:
    settings = {"block_size": 16, "certificate_documents": 2}
    made = sweep(engine={"kind": "vllm", "vllm": settings})
    assert made.engine.vllm.options() == {"block_size": 16, "batch_invariant": False}
