import json
from pathlib import Path

import pytest

from raypeft.engines.special_tokens import special_tokens
from raypeft.errors import CellError


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def test_they_are_gathered_from_wherever_a_tokenizer_has_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        "tokenizer.json",
        {"added_tokens": [{"content": "<a>", "special": True}, {"content": "b", "special": False}]},
    )
    write(
        tmp_path,
        "tokenizer_config.json",
        {
            "added_tokens_decoder": {"7": {"content": "<c>", "special": True}},
            "bos_token": {"content": "<d>"},
            "eos_token": "<e>",
            "pad_token": None,
            "extra_special_tokens": {"image_token": "<f>"},
            "add_bos_token": True,
        },
    )
    write(tmp_path, "special_tokens_map.json", {"additional_special_tokens": ["<g>", "<a>"]})
    assert special_tokens(str(tmp_path)) == ("<a>", "<c>", "<d>", "<e>", "<f>", "<g>")


@pytest.mark.torch
def test_they_are_those_that_transformers_leaves_out(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tests.support.tiny import tiny_tokenizer

    tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    added = tokenizer.added_tokens_decoder.values()
    left_out = {str(token) for token in added if token.special}
    assert left_out
    assert set(special_tokens(str(tmp_path))) == left_out


def test_a_tokenizer_without_any_has_none(tmp_path: Path) -> None:
    assert special_tokens(str(tmp_path)) == ()
    with pytest.raises(CellError, match="no such folder"):
        special_tokens(str(tmp_path / "nowhere"))
