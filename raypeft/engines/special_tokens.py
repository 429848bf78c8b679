"""The special tokens of a tokenizer, read from its files without loading it.

Decides: nothing. lm-eval's class for hf leaves them out of the texts that it gives, and that for
vLLM does not: whoever compares both must know them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from raypeft.core.records import Json
from raypeft.engines.bases import TOKENIZER_FILES
from raypeft.engines.folders import resolve_folder

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def special_tokens(path: str) -> tuple[str, ...]:
    """Return the texts of a tokenizer's special tokens, sorted.

    Args:
        path: Local folder or hub id.

    Raises:
        CellError: `spec` if there is no such folder or repository.
        ValueError: If one of its files is no JSON.
    """
    folder = resolve_folder(path, what="tokenizer", files=TOKENIZER_FILES)
    return tuple(sorted({text for name in _FILES for text in _texts(_read(folder / name)) if text}))


def _read(file: Path) -> dict[str, Json]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}  # no tokenizer has all of them
    return value if isinstance(value, dict) else {}


def _texts(value: dict[str, Json]) -> Iterator[str]:
    listed = value.get("added_tokens")
    by_number = value.get("added_tokens_decoder")
    entries = list(listed) if isinstance(listed, list) else []
    entries += list(by_number.values()) if isinstance(by_number, dict) else []
    for entry in entries:
        if isinstance(entry, dict) and entry.get("special") is True:
            yield _text(entry)
    for name, named in value.items():
        if name.endswith("_token"):
            yield _text(named)
        elif name in ("additional_special_tokens", "extra_special_tokens"):
            several = list(named.values()) if isinstance(named, dict) else named
            yield from map(_text, several if isinstance(several, list) else [])


def _text(value: Json) -> str:
    """Return a token's text, which stands alone or among its properties."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""
