"""A config decides dtype, longest row and whether code of the base's own would run."""

from pathlib import Path
from typing import Any

import pytest

from raypeft.core.records import FailureKind
from raypeft.engines.base_config import check_remote_code, loading_dtype, longest_row
from raypeft.errors import CellError

OWN_CODE = {"auto_map": {"AutoConfig": "house.Config"}}


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        ({"dtype": "float16"}, "auto", "float16"),
        ({"dtype": "float16"}, "float32", "float32"),
        ({"torch_dtype": "torch.bfloat16"}, "auto", "bfloat16"),
        ({"text_config": {"dtype": "float16"}}, "auto", "float16"),
        ({"dtype": None}, "auto", "float32"),
    ],
)
def test_dtype(config: dict[str, Any], asked: str, expected: str) -> None:
    assert loading_dtype(config, asked, "base 'b'") == expected


@pytest.mark.parametrize("asked", ["auto", "int8"])
def test_a_dtype_that_is_not_allowed_names_where_it_stands(asked: str) -> None:
    with pytest.raises(CellError, match=r"(config\.json|sweep file) says") as raised:
        loading_dtype({"dtype": "int8"}, asked, "base 'b'")
    assert raised.value.kind == FailureKind.UNSUPPORTED
    assert ("config.json" in raised.value.message) == (asked == "auto")


@pytest.mark.parametrize(
    ("config", "limit", "expected"),
    [
        ({"n_positions": 10, "max_position_embeddings": 20}, 5, 10),
        ({"n_ctx": 30}, None, 30),
        ({"n_positions": 9, "text_config": {"max_position_embeddings": 40}}, None, 40),
        ({}, 50, 50),
        ({}, 1e30, 2048),
        ({}, None, 2048),
    ],
)
def test_longest_row(config: dict[str, Any], limit: Any, expected: int) -> None:
    assert longest_row(config, limit) == expected


@pytest.mark.torch
@pytest.mark.parametrize(
    ("config", "limit"),
    [({"n_positions": 10}, 5), ({"max_position_embeddings": 77}, None), ({}, 50), ({}, int(1e30))],
)
def test_longest_row_is_that_of_lm_eval(config: dict[str, Any], limit: Any) -> None:
    from types import SimpleNamespace

    from lm_eval.models.utils import resolve_max_length

    tokenizer = SimpleNamespace(model_max_length=limit)

    assert longest_row(config, limit) == resolve_max_length(SimpleNamespace(**config), tokenizer)


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        ({"model_type": "house"}, False),
        ({"model_type": "house"} | OWN_CODE, True),
        ({"model_type": "llama"} | OWN_CODE, False),
        ({"model_type": "house", "auto_map": {"AutoTokenizer": "house.Tokenizer"}}, False),
    ],
)
def test_own_code_passes_where_it_is_allowed_or_not_needed(
    tmp_path: Path, config: dict[str, Any], allowed: bool
) -> None:
    check_remote_code(config, tmp_path, "base 'b'", trust_remote_code=allowed)


def test_own_code_that_is_needed_and_not_allowed_is_unsafe(tmp_path: Path) -> None:
    (tmp_path / "house.py").touch()

    with pytest.raises(CellError, match=r"house\.py") as raised:
        check_remote_code(
            {"model_type": "house"} | OWN_CODE, tmp_path, "base 'b'", trust_remote_code=False
        )
    assert raised.value.kind == FailureKind.UNSAFE
