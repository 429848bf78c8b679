"""What a base's config.json says about loading it.

Decides: the dtype, the longest row, and whether code of its own would run. Leaves to others: the
files (`bases`), loading (`hf_model`).
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from raypeft.core.records import FailureKind, Json
from raypeft.errors import CellError

DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_MAX_LENGTH = 2048  # as lm_eval.models.utils.DEFAULT_MAX_LENGTH


def check_remote_code(
    config: Mapping[str, Json], folder: Path, what: str, *, trust_remote_code: bool
) -> None:
    """Refuse a base that needs Python code of its own, unless that is allowed.

    Raises:
        CellError: `unsafe`.
    """
    needs_code = any(
        str(name).startswith(("AutoConfig", "AutoModel")) for name in config.get("auto_map") or ()
    )
    model_type = str(config.get("model_type", ""))
    if trust_remote_code or not needs_code or _is_built_in(model_type):
        return
    files = sorted(file.name for file in folder.glob("*.py"))
    raise CellError(
        FailureKind.UNSAFE,
        f"{what}: its model type {model_type!r} is not part of transformers and needs Python code "
        f"of its own ({', '.join(files) or 'on the hub'}); read that code, then say "
        "`trust_remote_code: true` for this base",
    )


def _is_built_in(model_type: str) -> bool:
    # Looked up by folder name: importing transformers would import torch.
    spec = importlib.util.find_spec("transformers")
    places = spec.submodule_search_locations if spec is not None else None
    name = model_type.replace("-", "_")
    return bool(name) and any((Path(place) / "models" / name).is_dir() for place in places or ())


def loading_dtype(config: Mapping[str, Json], asked: str, what: str) -> str:
    """Return the dtype a base is to be loaded in.

    Args:
        config: The base's config.
        asked: A dtype, or `auto` for that of the config (`float32` if it has none).
        what: The base, for messages.

    Raises:
        CellError: `unsupported`.
    """
    dtype = asked
    if asked == "auto":
        text = config.get("text_config")
        for part in (config, text if isinstance(text, dict) else {}):
            if found := part.get("dtype") or part.get("torch_dtype"):
                dtype = str(found).removeprefix("torch.")
                break
        else:
            dtype = "float32"
    if dtype not in DTYPES:
        source = "its config.json says" if asked == "auto" else "the sweep file says"
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: {source} dtype {dtype!r}; allowed are {', '.join(DTYPES)}",
        )
    return dtype


def longest_row(config: Mapping[str, Json], tokenizer_limit: Json) -> int:
    """Return the longest row in tokens, as lm-eval's HFLM derives it.

    Args:
        config: The base's config.
        tokenizer_limit: The tokenizer's `model_max_length`, if it has one.
    """
    # As lm_eval.models.utils.resolve_max_length, which needs a loaded config.
    text = config.get("text_config")
    part = text if isinstance(text, dict) and text else config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if part.get(name) is not None:
            return int(part[name])
    # Tokenizers without a limit save 1e30.
    if tokenizer_limit is not None and tokenizer_limit < 1e29:
        return int(tokenizer_limit)
    return DEFAULT_MAX_LENGTH
