"""A base's folder is read, or refused for a named reason, before anything is loaded."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from raypeft.core.records import FailureKind
from raypeft.engines.bases import FileKey, find_base, read_base, tokenizer_digest
from raypeft.errors import CellError
from tests.engines.samples import hand_made_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return hand_made_base(tmp_path / "base")


def refusal(folder: Path, **reading: Any) -> CellError:
    with pytest.raises(CellError) as raised:
        read_base(str(folder), **reading)
    return raised.value


def edit(file: Path, **changes: Any) -> None:
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: one for key, one in value.items() if one is not None}))


def make_index(base: Path, *names: str) -> None:
    shutil.move(base / "model.safetensors", base / names[0])
    weight_map = {f"tensor.{number}": name for number, name in enumerate(names)}
    index = {"metadata": {}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_good_base_is_described(base: Path) -> None:
    facts = read_base(str(base))

    assert facts.path == str(base.resolve())
    assert facts.dtype == "bfloat16"
    assert facts.model_type == "llama"
    assert facts.num_parameters == 2 * 32 * 8 + 8 * 8 * 8
    assert facts.num_bytes == (base / "model.safetensors").stat().st_size
    assert facts.max_length == 64


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"dtype": None, "torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, "float16"),
        ({"dtype": None}, "float32"),
    ],
)
def test_auto_dtype_is_the_configs(base: Path, config: dict[str, Any], expected: str) -> None:
    edit(base / "config.json", **config)

    assert read_base(str(base)).dtype == expected
    assert read_base(str(base), dtype="float32").dtype == "float32"


def test_a_dtype_that_no_engine_loads(base: Path) -> None:
    edit(base / "config.json", dtype="float8_e4m3fn")

    error = refusal(base)

    assert error.kind == FailureKind.UNSUPPORTED
    assert "float8_e4m3fn" in error.message
    assert "bfloat16" in error.message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"n_positions": 10}, 10),
        ({"max_position_embeddings": 77}, 77),
        ({"text_config": {"max_position_embeddings": 9}}, 9),
        ({"max_position_embeddings": None}, 48),
    ],
)
def test_max_length_is_that_of_lm_eval(base: Path, config: dict[str, Any], expected: int) -> None:
    edit(base / "config.json", **config)

    assert read_base(str(base)).max_length == expected


def test_max_length_falls_back_where_the_tokenizer_has_no_limit(base: Path) -> None:
    edit(base / "config.json", max_position_embeddings=None)
    edit(base / "tokenizer_config.json", model_max_length=1e30)

    assert read_base(str(base)).max_length == 2048


def test_the_digest_is_that_of_the_content(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)

    assert read_base(str(copy)).digest == read_base(str(base)).digest


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_where_a_file_came_from_is_not_in_the_digest(base: Path, name: str) -> None:
    before = read_base(str(base)).digest
    edit(base / name, _name_or_path="/elsewhere", transformers_version="9.9")

    assert read_base(str(base)).digest == before


def test_every_part_of_the_content_is_in_the_digest(base: Path) -> None:
    digests = [read_base(str(base)).digest]
    weights = base / "model.safetensors"

    def changed() -> None:
        digests.append(read_base(str(base)).digest)

    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    changed()
    edit(base / "config.json", rope_theta=5)
    changed()
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    changed()
    (base / "tokenizer.json").write_text("{}")
    changed()
    (base / "chat_template.jinja").write_text("{{ messages }}")
    changed()

    assert len(set(digests)) == len(digests)


def test_another_tokenizer_is_another_base(base: Path, tmp_path: Path) -> None:
    other = hand_made_base(tmp_path / "other")
    same = read_base(str(base), tokenizer=str(other)).digest
    (other / "tokenizer.json").write_text("{}")

    assert same == read_base(str(base)).digest
    assert read_base(str(base), tokenizer=str(other)).digest != same


def test_the_memo_is_filled_and_trusted_until_the_file_changes(base: Path) -> None:
    memo: dict[FileKey, str] = {}
    digest = read_base(str(base), memo=memo).digest
    (key,) = memo
    assert key[0] == str((base / "model.safetensors").resolve())

    assert read_base(str(base), memo=memo).digest == digest
    forged = dict.fromkeys(memo, "0" * 64)
    assert read_base(str(base), memo=forged).digest != digest
    os.utime(base / "model.safetensors", ns=(1, 1))
    assert read_base(str(base), memo=forged).digest == digest


def test_sharded_weights_are_read_by_their_index(base: Path) -> None:
    make_index(base, "model-00001-of-00001.safetensors")
    (base / "consolidated.safetensors").write_bytes(b"not loaded by transformers")

    assert read_base(str(base)).num_parameters == 2 * 32 * 8 + 8 * 8 * 8


def test_a_missing_shard(base: Path) -> None:
    make_index(base, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

    error = refusal(base)

    assert error.kind == FailureKind.UNREADABLE
    assert "1 of 2 weight files" in error.message
    assert "model-00002-of-00002" in error.message


def test_an_index_without_a_map(base: Path) -> None:
    make_index(base, "model-00001-of-00001.safetensors")
    (base / "model.safetensors.index.json").write_text("{}")

    assert "no weight_map" in refusal(base).message


def test_a_missing_folder(tmp_path: Path) -> None:
    error = refusal(tmp_path / "missing")

    assert error.kind == FailureKind.SPEC
    assert "no such folder" in error.message


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("config.json", FailureKind.UNREADABLE, "no config.json"),
        ("model.safetensors", FailureKind.UNREADABLE, "holds no weights"),
        ("tokenizer*.json", FailureKind.UNREADABLE, "no tokenizer files"),
    ],
)
def test_a_missing_file(base: Path, name: str, kind: FailureKind, message: str) -> None:
    for file in base.glob(name):
        file.unlink()

    error = refusal(base)

    assert error.kind == kind
    assert message in error.message


def test_pickled_weights_are_unsafe(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")

    error = refusal(base)

    assert error.kind == FailureKind.UNSAFE
    assert "convert them to safetensors" in error.message


def test_truncated_weights(base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])

    error = refusal(base)

    assert error.kind == FailureKind.UNREADABLE
    assert "the file ends at" in error.message


@pytest.mark.parametrize("text", ["{nonsense", "[]", ""])
def test_a_config_that_is_no_json_object(base: Path, text: str) -> None:
    (base / "config.json").write_text(text)

    assert refusal(base).kind == FailureKind.UNREADABLE


def test_an_adapters_folder_is_no_base(base: Path) -> None:
    (base / "adapter_config.json").write_text("{}")

    error = refusal(base)

    assert error.kind == FailureKind.SPEC
    assert "is an adapter's folder" in error.message


def test_own_code_needs_permission(base: Path) -> None:
    edit(
        base / "config.json",
        model_type="house_made",
        auto_map={"AutoModelForCausalLM": "modeling.HouseModel"},
    )
    (base / "modeling.py").write_text("x = 1")

    error = refusal(base)

    assert error.kind == FailureKind.UNSAFE
    assert "modeling.py" in error.message
    allowed = read_base(str(base), trust_remote_code=True)
    (base / "modeling.py").write_text("x = 2")
    assert read_base(str(base), trust_remote_code=True).digest != allowed.digest


def test_own_code_beside_a_type_of_transformers_is_not_needed(base: Path) -> None:
    edit(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Llama"})

    assert find_base(str(base)) == base.resolve()


def test_a_tokenizers_digest_covers_templates_in_their_folder(base: Path) -> None:
    before = tokenizer_digest(str(base))
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text("x")

    assert tokenizer_digest(str(base)) != before
