import datetime
from typing import Any

import pytest

from raypeft.core.spec import make_sweep
from raypeft.core.spec_problems import place_of, plain_value, shown
from raypeft.errors import SpecError

MINIMAL: dict[str, Any] = {"output": "runs/x", "bases": ["gpt2"], "tasks": ["arc_easy"]}


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        make_sweep(values)
    return [str(problem) for problem in caught.value.problems]


def problem(**values: Any) -> str:
    (only,) = problems(MINIMAL | values)
    return only


def test_an_unknown_key_is_reported_with_the_nearest_known_one() -> None:
    assert problem(engine={"batch_sze": 4}) == (
        "engine.batch_sze: unknown key, known here are kind, batch_size, sharing, batch_tokens, "
        "softmax_dtype, options, vllm; did you mean `batch_size`?"
    )


def test_an_unknown_key_that_is_known_elsewhere_is_sent_there() -> None:
    assert problem(batch_size=4).endswith("`batch_size` stands under `engine`")
    assert problem(num_fewshot=4).endswith("`num_fewshot` stands under `evaluation`")
    assert problem(adapters=["a"]).endswith("`adapters` stands under `bases`")


def test_an_unknown_key_deep_in_a_list_has_its_whole_place() -> None:
    adapters = ["a", {"path": "b", "nickname": "own"}]
    found = problem(bases=["x", {"path": "y", "adapters": adapters}])
    assert found.startswith("bases[1].adapters[1].nickname: unknown key, known here are path,")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            "engine",
            {"batch_size": "eight"},
            'engine.batch_size: "eight" is not allowed, expected a whole number of 1 or more',
        ),
        (
            "engine",
            {"batch_size": True},
            "engine.batch_size: true is not allowed, expected a whole number of 1 or more",
        ),
        (
            "engine",
            {"batch_size": None},
            "engine.batch_size: null is not allowed, expected a whole number of 1 or more; "
            "leave the key out to take its default",
        ),
        (
            "engine",
            {"kind": "hff"},
            'engine.kind: "hff" is not allowed, expected auto or hf or vllm or fake',
        ),
        (
            "evaluation",
            {"limit": 1.0},
            "evaluation.limit: 1.0 is not allowed, expected a number of documents (whole, 1 or "
            "more) or a share of them (above 0 and below 1) or null",
        ),
        (
            "evaluation",
            {"limit": 0},
            "evaluation.limit: 0 is not allowed, expected a number of documents (whole, 1 or "
            "more) or a share of them (above 0 and below 1) or null",
        ),
        (
            "evaluation",
            {"seed": [1, 2, 3]},
            "evaluation.seed: a list of 3 is not allowed, expected a whole number from 0 to "
            "4294967295 or a list of four (python, numpy, torch, few-shot) or null",
        ),
        (
            "evaluation",
            {"seed": [1, 2, 3, None]},
            "evaluation.seed[3]: null is not allowed, expected a whole number from 0 to 4294967295",
        ),
        (
            "evaluation",
            {"trust": {}},
            "evaluation.trust: unknown key, known here are num_fewshot, limit, seed, "
            "apply_chat_template, system_instruction, fewshot_as_multiturn, gen_kwargs, "
            "bootstrap_iters, confirm_run_unsafe_code",
        ),
        (
            "hardware",
            {"gpus": 1.5},
            "hardware.gpus: 1.5 is not allowed, expected a whole number of GPUs, or a share of "
            "one below 1 or null",
        ),
        ("hardware", {"memory": 8}, 'hardware.memory: 8 has no unit; write for instance "8GiB"'),
        (
            "hardware",
            {"memory": "8G"},
            "hardware.memory: \"8G\" has the unknown unit 'G'; known units are KiB, MiB, GiB, "
            "TiB, KB, MB, GB, TB",
        ),
        (
            "schedule",
            {"unit_timeout": 30},
            'schedule.unit_timeout: 30 has no unit; write for instance "30m"',
        ),
        (
            "schedule",
            {"unit_timeout": [30]},
            "schedule.unit_timeout: a list of 1 is not allowed, expected a duration with its unit "
            '(s, m, h or d), for instance "90s", "30m" or "2h"',
        ),
        (
            "schedule",
            {"shards": 0},
            "schedule.shards: 0 is not allowed, expected a whole number of 1 or more or auto",
        ),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(
    section: str, values: dict[str, Any], message: str
) -> None:
    assert problem(**{section: values}) == message


def test_numbers_and_booleans_where_text_belongs_are_shown_in_quotes() -> None:
    base = {"path": "gpt2", "revision": 1234567}
    assert problem(bases=[base]).endswith('write "1234567" in quotes to make it text')
    assert problem(name=False).endswith('write "false" in quotes to make it text')


def test_a_single_value_where_a_list_belongs_is_shown_as_one() -> None:
    assert problem(tasks="mmlu").endswith("write it as a list: [mmlu]")


def test_an_empty_list_and_a_wrong_item_say_what_belongs_there() -> None:
    assert problem(tasks=[]) == (
        "tasks: an empty list is not allowed, expected a list of one or more tasks: names, or "
        "mappings with the key `name`"
    )
    assert problem(bases=[["gpt2"]]) == (
        "bases[0]: a list of 1 is not allowed, expected a path or hub id, or a mapping with the "
        "key `path`"
    )


def test_an_empty_section_says_which_keys_belong_there() -> None:
    assert problem(schedule=None) == (
        "schedule: null is not allowed, expected a mapping with the keys slots, attempts, "
        "unit_timeout, shards, deadline, at_deadline, order, priority; leave the key out to take "
        "its default"
    )


def test_what_is_missing_is_described() -> None:
    assert problems({}) == [
        "output: is missing: Folder or URI (s3://, gs://) for this sweep's tables, report and "
        "journal.",
        "bases: is missing: The base models, each with its adapters.",
        "tasks: is missing: What every base and adapter is evaluated on.",
    ]


def test_an_entry_written_as_text_is_the_place_itself() -> None:
    assert problem(bases=[""]) == 'bases[0]: "" is empty'
    assert problem(bases=[{"path": ""}]) == 'bases[0].path: "" is empty'
    assert problem(bases=[".."]).startswith('bases[0]: ".." cannot be a name')


def test_names_that_break_files_or_tables_are_refused() -> None:
    adapters = [{"path": "a", "name": "x/y"}, {"path": "b", "name": "x\ty"}]
    found = problems(MINIMAL | {"bases": [{"path": "p", "name": " q", "adapters": adapters}]})
    assert found == [
        'bases[0].name: " q" begins or ends with a space',
        'bases[0].adapters[0].name: "x/y" holds a "/" or "\\", which separate base and adapter '
        "or folders",
        'bases[0].adapters[1].name: "x\\ty" holds a character that cannot be printed',
    ]


def test_values_that_json_cannot_hold_are_reported_each_once() -> None:
    values = MINIMAL | {
        "output": datetime.date(2024, 1, 2),
        "evaluation": {"gen_kwargs": {"a": [float("nan")], 3: 4}},
        "bases": ["\ud800"],
    }
    found = problems(values)
    assert len(found) == 4
    assert set(found) == {
        "output: 2024-01-02 (a date) is not allowed here; put it in quotes to make it text",
        "evaluation.gen_kwargs.a[0]: nan is not allowed, expected a finite number",
        "evaluation.gen_kwargs: the key 3 is no text; put it in quotes to make it so",
        'bases[0]: "\\ud800" holds half a character (a lone surrogate)',
    }


def test_a_number_too_large_for_tables_is_refused_without_spelling_it_out() -> None:
    assert problem(engine={"batch_size": 2**63}) == (
        "engine.batch_size: the number is too large, at most 9223372036854775807 is allowed"
    )
    assert "too large" in problem(evaluation={"gen_kwargs": {"a": 16**5000}})


def test_a_value_without_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    found = problem(evaluation={"gen_kwargs": {"a": endless}})
    assert found.startswith("evaluation.gen_kwargs.a[0][0]")
    assert found.endswith("is nested too deeply, at most 50 levels are allowed")


def test_a_plain_value_stays_as_it_is() -> None:
    value = {"a": [1, 2.5, "x", None, True], "b": {}}
    assert plain_value(value) == (value, [])


def test_a_value_that_must_be_given_is_not_to_be_left_out() -> None:
    assert problem(output=None) == "output: null is not allowed, expected text on one line"


def test_long_values_are_cut() -> None:
    assert len(shown("x" * 1000)) == 80
    assert shown("x" * 1000).endswith("…")


@pytest.mark.parametrize(
    ("parts", "place"),
    [
        ((), ""),
        (("bases", 0, "adapters", 2, "path"), "bases[0].adapters[2].path"),
        (("a", "b\n"), 'a."b\\n"'),
        (("", "x"), '"".x'),
    ],
)
def test_a_place_reads_like_a_path(parts: tuple[str | int, ...], place: str) -> None:
    assert place_of(parts) == place
