"""In which precision an adapter was trained, as far as its folder tells.

Decides: what the files beside an adapter say about the base it was trained on, and in which words
a difference to the evaluation is told. Leaves to others: what is done about it (nothing: an
adapter may be evaluated in any precision; but then its gain is not that of the training's).

PEFT writes nothing into `adapter_config.json`; the README (its model card) of older releases has a
line for each setting of bitsandbytes, that of release 0.21 has none. Other trainers leave
`training_args.json`, or name the quantised base.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypeft.core.records import Json, Quantization
from raypeft.engines.adapters import CONFIG_FILE

ARGUMENTS_FILE = "training_args.json"
CARD_FILE = "README.md"
RECIPE_FILE = "recipe.json"

_MOST_CHARS = 1 << 20
_CARD_LINE = re.compile(
    r"^\s*-?\s*_?(load_in_[48]bit|bnb_4bit_\w+|quant_method)\s*:\s*(\S+)\s*$", re.MULTILINE
)
_BASE_NAME = re.compile(r"bnb-([48])bit", re.IGNORECASE)
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPrecision:
    """What an adapter's folder says about its training.

    Attributes:
        quantization: How the base's weights were held; None: not quantised.
        dtype: What was computed in; None where nothing says so.
        source: The file that says it.
    """

    quantization: str | None
    dtype: str | None
    source: str


def training_precision(folder: Path, config: Mapping[str, Json]) -> TrainingPrecision | None:
    """Return what an adapter's folder says about its training; None if it says nothing.

    Args:
        folder: The adapter's folder.
        config: Its `adapter_config.json`.
    """
    card = dict(_CARD_LINE.findall(_read_text(folder / CARD_FILE)))
    return (
        _of_settings(_inner(config), CONFIG_FILE)
        or _of_settings(_inner(_read_object(folder / ARGUMENTS_FILE)), ARGUMENTS_FILE)
        or _of_settings(card, CARD_FILE)
        or _of_recipe(_read_object(folder / RECIPE_FILE))
        or _of_base_name(config)
    )


def difference(trained: TrainingPrecision, *, dtype: str, quantization: Quantization | None) -> str:
    """Return how training and evaluation differ, in words; empty if they do not."""
    before, now = trained.quantization or "none", quantization or "none"
    if before != now:
        return (
            f"{trained.source} says it was trained with quantization {before} of the base, and "
            f"it is evaluated with {now}; set the base's `quantization` to the same to measure "
            "what was trained"
        )
    if trained.dtype is not None and trained.dtype != dtype:
        return (
            f"{trained.source} says it was trained in {trained.dtype}, and it is evaluated in "
            f"{dtype}; set the base's `dtype` to the same to measure what was trained"
        )
    return ""


def _inner(settings: Mapping[str, Json]) -> Mapping[str, Json]:
    """Return settings with those of a quantization config among them."""
    quantization = settings.get("quantization_config")
    return {**settings, **quantization} if isinstance(quantization, Mapping) else settings


def _of_settings(settings: Mapping[str, Json], source: str) -> TrainingPrecision | None:
    bits = _bits(settings)
    if bits is None:
        return None
    dtype = settings.get("bnb_4bit_compute_dtype") if bits == 4 else None
    dtype = dtype or settings.get("torch_dtype") or settings.get("dtype")
    name = str(dtype).removeprefix("torch.")
    kind = None if bits == 0 else f"bnb-{bits}bit"
    if bits == 4 and str(settings.get("bnb_4bit_quant_type", "nf4")) != "nf4":
        kind = f"bnb-4bit ({settings['bnb_4bit_quant_type']})"
    method = str(settings.get("quant_method", "bitsandbytes")).rpartition(".")[2].lower()
    if not method.startswith(("bitsandbytes", "bits_and_bytes")):
        kind = method
    return TrainingPrecision(
        quantization=kind, dtype=name if name in _DTYPES else None, source=source
    )


def _bits(settings: Mapping[str, Json]) -> int | None:
    """Return 4 or 8, 0 where it is said that there was no quantisation, None if nothing is."""
    said = [settings.get(name) for name in ("load_in_4bit", "load_in_8bit")]
    for bits, value in zip((4, 8), said, strict=True):
        if str(value).lower() == "true":
            return bits
    loftq = settings.get("loftq_config")
    if isinstance(loftq, Mapping) and settings.get("init_lora_weights") == "loftq":
        return int(loftq.get("loftq_bits", 4))
    for name in ("quantization_bit", "bits"):  # LLaMA-Factory, and LoftQ's and others' GPTQ
        if settings.get(name) in (4, 8):
            return int(settings[name])
    return 0 if any(str(value).lower() == "false" for value in said) else None


def _of_recipe(sealed: Mapping[str, Json]) -> TrainingPrecision | None:
    recipe = sealed.get("recipe")
    if not isinstance(recipe, Mapping) or recipe.get("kind") != "adapter":
        return None
    # raypeft's own training computes in float32, on a base that is not quantised.
    return TrainingPrecision(quantization=None, dtype="float32", source=RECIPE_FILE)


def _of_base_name(config: Mapping[str, Json]) -> TrainingPrecision | None:
    found = _BASE_NAME.search(str(config.get("base_model_name_or_path") or ""))
    if found is None:
        return None
    source = f"{CONFIG_FILE} (base_model_name_or_path)"
    return TrainingPrecision(quantization=f"bnb-{found[1]}bit", dtype=None, source=source)


def _read_text(file: Path) -> str:
    # A hint and no more: a file that cannot be read says nothing.
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return opened.read(_MOST_CHARS)
    except OSError:
        return ""


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(file) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
