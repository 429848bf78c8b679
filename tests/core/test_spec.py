import copy
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema.validators import validator_for

from raypeft.core.spec import Sweep, dump_sweep, make_sweep, parse_sweep, sweep_schema
from raypeft.errors import SpecError

# How fast a busy machine is proves nothing.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

MINIMAL: dict[str, Any] = {"output": "runs/x", "bases": ["gpt2"], "tasks": ["arc_easy"]}

SCHEMA = sweep_schema()
SCHEMA_VALIDATOR = validator_for(SCHEMA)(SCHEMA)

FULL = """
name: overnight
output: s3://bucket/runs/overnight
store: s3://bucket/store
bases:
  - path: meta-llama/Llama-3.1-8B
    name: llama
    revision: "0123456"
    dtype: bfloat16
    tokenizer: org/tokenizer
    trust_remote_code: true
    attn_implementation: sdpa
    max_length: 4096
    add_bos_token: true
    adapters:
      - adapters/llama/*
      - {path: org/adapter, revision: v1, name: r64, allow_pickle: true}
  - gpt2
tasks:
  - mmlu
  - {name: gsm8k, num_fewshot: 8, limit: 200, gen_kwargs: {max_gen_toks: 512, until: ["\\n"]}}
  - {name: hellaswag, num_fewshot: null, limit: 0.5, gen_kwargs: inherit}
include_path: [tasks, more/tasks]
evaluation:
  num_fewshot: 5
  limit: 1000
  seed: [0, 1, 2, 3]
  apply_chat_template: default
  system_instruction: |
    Be brief.
  fewshot_as_multiturn: true
  gen_kwargs: {temperature: 0.5}
  bootstrap_iters: 0
  confirm_run_unsafe_code: true
engine: {kind: fake, batch_size: 4, softmax_dtype: model, options: {seconds: {gpt2: 1.5}}}
hardware:
  {gpus: 0.5, accelerator: H100, cpus: 2.5, memory: 8GiB, tensor_parallel: 1, allow_mixed: true}
schedule: {slots: 8, attempts: 1, unit_timeout: 30m, shards: 3}
"""


def test_a_full_sweep_file_is_read_as_it_stands() -> None:
    sweep = parse_sweep(FULL, source="full.yaml")
    assert sweep.name == "overnight"
    llama, gpt2 = sweep.bases
    assert (llama.name, llama.dtype, llama.max_length) == ("llama", "bfloat16", 4096)
    assert [adapter.path for adapter in llama.adapters] == ["adapters/llama/*", "org/adapter"]
    assert (gpt2.path, gpt2.name, gpt2.adapters) == ("gpt2", "gpt2", ())
    assert [task.name for task in sweep.tasks] == ["mmlu", "gsm8k", "hellaswag"]
    assert sweep.settings(sweep.tasks[1]).gen_kwargs == {"max_gen_toks": 512, "until": ["\n"]}
    assert sweep.settings(sweep.tasks[2]).num_fewshot is None
    assert sweep.evaluation.seeds == (0, 1, 2, 3)
    assert sweep.hardware.gpus == 0.5
    assert sweep.schedule.shards == 3


def test_the_smallest_sweep_file_has_defaults_for_everything_else() -> None:
    sweep = parse_sweep("{output: runs/a, bases: [gpt2], tasks: [t]}", source="", name="first")
    assert (sweep.name, sweep.store) == ("first", "runs/store")
    assert (sweep.engine.kind, sweep.engine.batch_size) == ("auto", 8)
    assert sweep.engine.softmax_dtype == "float32"
    assert (sweep.hardware.gpus, sweep.hardware.cpus, sweep.hardware.memory) == (None, 1, None)
    assert (sweep.schedule.slots, sweep.schedule.attempts) == (1, 3)
    assert sweep.schedule.shards == "auto"


def test_a_name_in_the_file_goes_before_the_files_name() -> None:
    assert make_sweep(MINIMAL | {"name": "mine"}, name="file").name == "mine"


@pytest.mark.parametrize("text", ["", "# only a comment\n", "null"])
def test_an_empty_file_is_answered_with_the_smallest_sweep(text: str) -> None:
    with pytest.raises(SpecError, match="is empty; the smallest sweep is") as caught:
        parse_sweep(text, source="empty.yaml")
    assert str(caught.value).startswith("1 problem in empty.yaml:")
    example = str(caught.value).split("`")[1]
    assert parse_sweep(example, source="").tasks[0].name == "arc_easy"


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "42"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="expected a mapping with the keys of a sweep"):
        parse_sweep(text, source="list.yaml")


def test_a_syntax_error_has_the_files_name_line_and_column() -> None:
    with pytest.raises(SpecError) as caught:
        parse_sweep("output: [", source="broken.yaml")
    assert "in broken.yaml" in str(caught.value)
    assert "line 1, column 10" in str(caught.value)


def test_every_problem_is_in_the_message() -> None:
    text = "outptu: x\nbases: []\ntasks: [a, a]\nengine: {kind: vlm, batch_size: 0}\n"
    with pytest.raises(SpecError) as caught:
        parse_sweep(text, source="bad.yaml")
    places = [problem.place for problem in caught.value.problems]
    assert len(places) == 6
    assert set(places) == {
        "bases",
        "engine.batch_size",
        "engine.kind",
        "output",
        "outptu",
        "tasks[1]",
    }
    assert all(f"- {problem}" in str(caught.value) for problem in caught.value.problems)


# --- round trip -------------------------------------------------------------------------------

CHARS = st.characters(exclude_categories=["Cs"])
LINES = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12
).filter(str.strip)
NAMES = LINES.filter(
    lambda text: text.isprintable() and text == text.strip() and text not in {".", ".."}
).map(lambda text: text.replace("/", "-").replace("\\", "-"))
SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(CHARS, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARS), inner, max_size=3),
    max_leaves=6,
)
SETTINGS = st.none() | st.dictionaries(st.text(CHARS, max_size=8), JSON, max_size=3)
LIMITS = st.none() | st.integers(1, 2**63 - 1) | SHARES
SHOTS = st.none() | st.integers(0, 64)
SEEDS = st.integers(0, 2**32 - 1)


def some(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings with any choice of some keys."""
    return st.fixed_dictionaries({}, optional=values)


def entries(
    main_key: str, names: st.SearchStrategy[str], **values: st.SearchStrategy[Any]
) -> st.SearchStrategy[list[Any]]:
    """Lists of texts and of mappings, no main key twice."""
    mapping = st.fixed_dictionaries({main_key: names}, optional=values)
    return st.lists(
        names | mapping,
        max_size=3,
        unique_by=lambda entry: (entry if isinstance(entry, str) else entry[main_key]).rstrip("/"),
    )


PATHS = st.builds("{}/{}".format, NAMES, NAMES)
ADAPTERS = entries("path", LINES, revision=st.none() | LINES, allow_pickle=st.booleans())
SWEEPS = st.fixed_dictionaries(
    {
        "output": NAMES.map("runs/{}".format),
        "bases": entries(
            "path",
            NAMES,
            dtype=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
            revision=st.none() | LINES,
            max_length=st.none() | st.integers(1, 2**63 - 1),
            add_bos_token=st.none() | st.booleans(),
            adapters=ADAPTERS,
        ).filter(bool),
        "tasks": entries(
            "name",
            LINES,
            num_fewshot=SHOTS | st.just("inherit"),
            limit=LIMITS | st.just("inherit"),
            gen_kwargs=SETTINGS | st.just("inherit"),
        ).filter(bool),
    },
    optional={
        "name": NAMES,
        "store": NAMES.map("stores/{}".format),
        "include_path": st.lists(LINES, max_size=2),
        "evaluation": some(
            num_fewshot=SHOTS,
            limit=LIMITS,
            seed=st.none() | SEEDS | st.lists(SEEDS, min_size=4, max_size=4),
            apply_chat_template=st.booleans() | LINES,
            system_instruction=st.none() | st.text(CHARS),
            gen_kwargs=SETTINGS,
            bootstrap_iters=st.integers(0, 2**63 - 1),
        ),
        "engine": some(
            kind=st.sampled_from(["auto", "hf", "fake"]),
            batch_size=st.integers(1, 2**63 - 1),
            softmax_dtype=st.sampled_from(["float32", "model"]),
        ),
        "hardware": some(
            gpus=st.none() | st.integers(1, 8) | SHARES,
            accelerator=st.none() | LINES,
            cpus=st.integers(1, 2**63 - 1) | SHARES,
            memory=st.none() | st.sampled_from(["8GiB", "1.5 TB"]),
        ),
        "schedule": some(
            slots=st.integers(1, 2**63 - 1),
            unit_timeout=st.sampled_from(["90s", "1.5h"]),
            shards=st.just("auto") | st.integers(1, 2**63 - 1),
        ),
    },
)


@RELAXED
@given(SWEEPS)
def test_what_is_written_is_read_back_equal(values: dict[str, Any]) -> None:
    sweep = make_sweep(values)
    assert parse_sweep(dump_sweep(sweep), source="dump", name="other") == sweep


@RELAXED
@given(SWEEPS)
def test_the_schema_takes_what_the_parser_takes(values: dict[str, Any]) -> None:
    sweep = make_sweep(values)
    SCHEMA_VALIDATOR.validate(values)
    SCHEMA_VALIDATOR.validate(yaml.safe_load(dump_sweep(sweep)))


# --- never anything but SpecError -------------------------------------------------------------

KEYS = st.sampled_from(
    [
        key
        for model in (Sweep, *(Sweep.model_fields[name].annotation for name in ("engine",)))
        if model is not None
        for key in model.model_fields
    ]
    + ["path", "adapters", "revision", "limit", "seed", "gen_kwargs", "unit_timeout", "gpus"]
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from(["inherit", "auto", "30m", "8GiB", "vllm", "a/*", "..", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.text(max_size=4) | st.integers(), inner, max_size=5)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=12,
)


def parsed_or_refused(values: object) -> None:
    try:
        sweep = make_sweep(values)
    except SpecError as error:
        refused = error
    else:
        assert parse_sweep(dump_sweep(sweep), source="dump") == sweep
        return
    places = [problem.place for problem in refused.problems]
    assert places
    assert len(set(places)) == len(places)
    assert str(refused).encode("utf-8", "strict")


@RELAXED
@given(ANYTHING)
def test_any_value_is_a_sweep_or_a_spec_error(values: object) -> None:
    parsed_or_refused(values)


@RELAXED
@given(values=SWEEPS, odd=ANYTHING, data=st.data())
def test_a_sweep_with_anything_anywhere_is_a_sweep_or_a_spec_error(
    values: dict[str, Any], odd: object, data: st.DataObject
) -> None:
    values = copy.deepcopy(values)
    node: Any = values
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys) if keys else KEYS)
        deeper = isinstance(node, dict) and isinstance(node.get(key), dict | list) and node[key]
        deeper = deeper or (isinstance(node, list) and isinstance(node[key], dict) and node[key])
        if not deeper or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = odd
    parsed_or_refused(values)


# --- the schema -------------------------------------------------------------------------------


def test_the_schema_is_valid_and_says_its_draft() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert isinstance(SCHEMA_VALIDATOR, jsonschema.Draft202012Validator)
    SCHEMA_VALIDATOR.check_schema(SCHEMA)


def test_every_field_of_the_schema_is_described_and_every_object_is_closed() -> None:
    models = [SCHEMA, *(model for name, model in SCHEMA["$defs"].items() if name != "JsonValue")]
    for model in models:
        assert model["additionalProperties"] is False
        for key, field in model["properties"].items():
            described = field if "description" in field else SCHEMA["$defs"][field["$ref"][8:]]
            assert described["description"], key


@pytest.mark.parametrize("values", [MINIMAL, yaml.safe_load(FULL)])
def test_the_schema_takes_good_sweeps(values: dict[str, Any]) -> None:
    SCHEMA_VALIDATOR.validate(values)


@pytest.mark.parametrize(
    "change",
    [
        {"outptu": "x"},
        {"output": ""},
        {"name": "a/b"},
        {"bases": []},
        {"bases": [""]},
        {"bases": [{"name": "no path"}]},
        {"bases": [{"path": "x", "dtype": "fp8"}]},
        {"bases": [{"path": "x", "adapters": [{"path": "y", "nickname": "own"}]}]},
        {"tasks": "mmlu"},
        {"tasks": [{"name": "t", "limit": "half"}]},
        {"evaluation": {"limit": 1.5}},
        {"evaluation": {"limit": 0}},
        {"evaluation": {"seed": [1, 2, 3]}},
        {"evaluation": None},
        {"engine": {"kind": "vlm"}},
        {"engine": {"vllm": {"gpu_memory_utilization": 1.5}}},
        {"engine": {"vllm": {"kv_cache_memory_bytes": "4GiB"}}},
        {"engine": {"vllm": {"max_loras": 4}}},
        {"engine": {"vllm": {"certificate_tolerance_nats": 0}}},
        {"engine": {"batch_size": "8"}},
        {"hardware": {"memory": 8}},
        {"hardware": {"memory": "8G"}},
        {"hardware": {"gpus": 1.5}},
        {"hardware": {"cpus": 0}},
        {"schedule": {"unit_timeout": 30}},
        {"schedule": {"unit_timeout": "30"}},
        {"schedule": {"shards": "many"}},
    ],
)
def test_what_the_schema_refuses_the_parser_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA_VALIDATOR.validate(MINIMAL | change)
    with pytest.raises(SpecError):
        make_sweep(MINIMAL | change)
