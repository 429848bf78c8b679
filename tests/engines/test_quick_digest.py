"""A slot that finds another base under the planned path does not load it."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from raypeft.core.records import EngineSpec, FailureKind
from raypeft.engines.bases import check_quick_digest, quick_digest, read_base
from raypeft.errors import CellError
from tests.engines.samples import hand_made_base


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_copies_are_equal_and_the_driver_computes_the_same(tmp_path: Path) -> None:
    one, two = hand_made_base(tmp_path / "one"), hand_made_base(tmp_path / "two")
    assert quick_digest(one) == quick_digest(two) == read_base(str(one)).quick_digest
    (two / "README.md").write_text("not part of it")
    edit(two / "config.json", transformers_version="0")
    assert quick_digest(one) == quick_digest(two)


def test_everything_but_the_values_of_weights_is_looked_at(tmp_path: Path) -> None:
    base = hand_made_base(tmp_path / "base")
    digests = [quick_digest(base)]
    edit(base / "config.json", rope_theta=1.0)
    digests.append(quick_digest(base))
    (base / "tokenizer.json").write_text('{"model": {"vocab": {"b": 0}}}')
    digests.append(quick_digest(base))
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    digests.append(quick_digest(base))
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
    save_file(tensors, base / "model.safetensors")
    digests.append(quick_digest(base))
    (base / "modeling_own.py").write_text("x = 1")
    digests.append(quick_digest(base, trust_remote_code=True))
    other = hand_made_base(tmp_path / "other")
    (other / "tokenizer.json").write_text('{"model": {"vocab": {"c": 0}}}')
    digests.append(quick_digest(base, tokenizer=str(other)))
    assert len(set(digests)) == len(digests)


def test_another_base_is_refused_with_both_digests_named(tmp_path: Path) -> None:
    base = hand_made_base(tmp_path / "base")
    planned = quick_digest(base)
    spec = EngineSpec(kind="hf", base=str(base), base_digest="", base_quick_digest=planned)
    check_quick_digest(spec, base)
    edit(base / "config.json", rope_theta=1.0)
    with pytest.raises(CellError) as raised:
        check_quick_digest(spec, base)
    error = raised.value
    assert (error.kind, error.retryable) == (FailureKind.LOAD_FAILED, True)
    assert planned in error.message
    assert quick_digest(base) in error.message


def test_nothing_is_compared_where_nothing_is_known(tmp_path: Path) -> None:
    check_quick_digest(EngineSpec(kind="hf", base="b", base_digest=""), tmp_path)


@pytest.mark.torch
def test_the_hf_engine_refuses_it_before_loading(tiny_base: Path) -> None:
    from raypeft.engines.hf import HFEngine

    spec = EngineSpec(kind="hf", base=str(tiny_base), base_digest="", base_quick_digest="0" * 32)
    with pytest.raises(CellError, match="is another one than when the sweep was planned") as raised:
        HFEngine(spec)
    assert (raised.value.kind, raised.value.retryable) == (FailureKind.LOAD_FAILED, True)
