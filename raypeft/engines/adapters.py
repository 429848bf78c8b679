"""Reads an adapter folder before anything is loaded: config, tensors, digest.

Decides: whether an adapter can be used at all, as far as its files (and those of its base) can
tell, and what its identity is. Leaves to others: what only the loaded base can tell, that is the
exact set of tensors PEFT expects and whether the adapter changes anything (`hf_adapters`).

PEFT itself loads adapters that do not fit with a warning or with none, and NaN weights without
a word; every such case is an error here or there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from raypeft.core.identity import digest
from raypeft.core.peft_settings import SETTINGS, unknown_settings
from raypeft.core.records import Adapter, FailureKind, Json
from raypeft.core.routing import NotRoutable, Route, route
from raypeft.engines.adapter_checks import check_lora, check_values
from raypeft.engines.folders import ADAPTER_FILES, read_failure, resolve_folder
from raypeft.engines.recorded_base import TargetBase, check_recorded_base
from raypeft.engines.tensorfiles import TensorInfo, hash_file, read_header
from raypeft.errors import CellError

ADAPTER_VERSION = 1

CONFIG_FILE = "adapter_config.json"
SAFE_WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_WEIGHTS_FILE = "adapter_model.bin"

_UNSUPPORTED_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")

# These say where the adapter came from, or how it would go on training.
_CONFIG_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "revision",
        "runtime_config",
    }
)
# Absent from configs of older PEFT versions, where their meaning was the same as false.
_FALSE_IS_ABSENT = frozenset(
    {
        "ensure_weight_tying",
        "fan_in_fan_out",
        "lora_bias",
        "use_dora",
        "use_qalora",
        "use_rslora",
    }
)
# PEFT holds these as sets and saves them in whatever order Python gives.
_ORDER_FREE = frozenset(
    {
        "exclude_modules",
        "feedforward_modules",
        "layers_to_transform",
        "modules_to_save",
        "target_modules",
    }
)


class AdapterFiles(NamedTuple):
    """An adapter's files, read.

    Attributes:
        folder: The local folder.
        weights: The weights file.
        config: Its `adapter_config.json`.
        tensors: The tensors of a safetensors file; None for pickled weights.
    """

    folder: Path
    weights: Path
    config: Mapping[str, Json]
    tensors: Mapping[str, TensorInfo] | None

    @property
    def route(self) -> Route:
        """How it shares a loaded base with others."""
        found = route(self.config)
        # Whoever read the files has refused the others.
        assert isinstance(found, Route), found.reason
        return found


def read_adapter(
    path: str,
    *,
    name: str,
    revision: str | None = None,
    allow_pickle: bool = False,
    base_path: str | None = None,
    base: TargetBase | None = None,
    any_base: bool = False,
) -> Adapter:
    """Read and check an adapter's files, and return it with its digest.

    Args:
        path: Local folder, or hub id (taken from the hub's cache where the hub is switched off).
        name: Its name in the tables.
        revision: Hub revision of the adapter.
        allow_pickle: Whether `.bin` weights may be used. Their tensors are then checked only
            once they are loaded.
        base_path: Local folder of its base; None skips the comparison with the base's tensors.
        base: The base it is put on; None skips the comparison with the base it was trained on.
        any_base: Whether the sweep file allows it to have been trained on another base.

    Raises:
        CellError: With the kind and a message that says what is wrong and what to do.
    """
    what = f"adapter {name!r}"
    files = read_adapter_files(path, what=what, revision=revision, allow_pickle=allow_pickle)
    try:
        weights_digest = hash_file(files.weights)
    except OSError as error:
        raise read_failure(what, files.weights, error) from None
    if base is not None and not any_base:
        check_recorded_base(files.config, base, what=what)
    if files.tensors is not None:
        check_lora(files.tensors, files.config, what=what, base_folder=base_path)
        check_values(files.weights, files.tensors, files.config, what=what)
    return Adapter(
        name=name,
        path=path,
        digest=adapter_digest(weights_digest, files.config),
        revision=revision,
        peft_type=str(files.config["peft_type"]),
        allow_pickle=allow_pickle,
        config=files.config,
    )


def read_adapter_files(
    path: str, *, what: str, revision: str | None = None, allow_pickle: bool = False
) -> AdapterFiles:
    """Find an adapter's files, parse its config and its weights' header.

    Raises:
        CellError: `spec`, `unreadable`, `unsafe` or `unsupported`.
    """
    folder = resolve_folder(path, what=what, revision=revision, files=ADAPTER_FILES)
    config = _read_config(folder / CONFIG_FILE, what)
    weights = _find_weights(folder, what, allow_pickle=allow_pickle)
    tensors = None
    if weights.name == SAFE_WEIGHTS_FILE:
        tensors = read_header(weights, what=what)
        if not tensors:
            raise CellError(FailureKind.UNREADABLE, f"{what}: {weights} holds no tensors")
    return AdapterFiles(folder, weights, config, tensors)


def open_adapter(adapter: Adapter) -> AdapterFiles:
    """Find the files of an adapter that was read before, and check that they are still the same.

    Answers are stored under the adapter's digest; files that were trained on since then would
    put another adapter's answers there.

    Raises:
        CellError: As `read_adapter_files`, and `unreadable` if the content is another one.
    """
    what = f"adapter {adapter.name!r}"
    files = read_adapter_files(
        adapter.path, what=what, revision=adapter.revision, allow_pickle=adapter.allow_pickle
    )
    try:
        found = adapter_digest(hash_file(files.weights), files.config)
    except OSError as error:
        raise read_failure(what, files.weights, error) from None
    if found != adapter.digest:
        raise CellError(
            FailureKind.UNREADABLE,
            f"{what}: {files.folder} holds other content than when the sweep was planned (digest "
            f"{found}, expected {adapter.digest}); plan again, and do not write into adapter "
            "folders while a sweep runs",
        )
    return files


def adapter_digest(weights_digest: str, config: Mapping[str, Json]) -> str:
    """Return an adapter's identity: its weights file and what in its config can change a score."""
    value = {"weights": weights_digest, "config": normalised_config(config)}
    return digest("adapter", ADAPTER_VERSION, value)


def normalised_config(config: Mapping[str, Json]) -> dict[str, Json]:
    """Return the part of an adapter's config that can change a score, in one spelling."""
    result: dict[str, Json] = {}
    for key, value in config.items():
        if key in _CONFIG_WITHOUT_EFFECT or value is None or value in ([], {}):
            continue
        if value is False and key in _FALSE_IS_ABSENT:
            continue
        if key in ("rank_pattern", "alpha_pattern") and isinstance(value, dict):
            # PEFT takes the first key that matches a module: the order counts.
            result[key] = [[pattern, number] for pattern, number in value.items()]
            continue
        ordered = key in _ORDER_FREE and isinstance(value, list)
        result[key] = sorted(value, key=str) if ordered else value
    return result


def _read_config(file: Path, what: str) -> dict[str, Json]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        is_base = (file.parent / "config.json").exists()
        remedy = (
            "it is a whole model's folder (config.json): list it under `bases`"
            if is_base
            else "give the folder that PEFT's save_pretrained wrote"
        )
        raise CellError(
            FailureKind.UNREADABLE, f"{what}: {file.parent} holds no {CONFIG_FILE}; {remedy}"
        ) from None
    except OSError as error:
        raise read_failure(what, file, error) from None
    except UnicodeDecodeError as error:
        raise CellError(FailureKind.UNREADABLE, f"{what}: {file} is not UTF-8: {error}") from None
    try:
        config = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CellError(FailureKind.UNREADABLE, f"{what}: {file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CellError(
            FailureKind.UNREADABLE,
            f"{what}: {file} holds a {type(config).__name__}, not an object with settings",
        )
    _check_type(config, file, what)
    return config


def _check_type(config: Mapping[str, Json], file: Path, what: str) -> None:
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str):
        raise CellError(
            FailureKind.UNREADABLE, f"{what}: {file} names no peft_type; is it an adapter's config?"
        )
    found = route(config)
    if isinstance(found, NotRoutable):
        raise CellError(FailureKind.UNSUPPORTED, f"{what}: {file}: {found.reason}")
    if unknown := unknown_settings(config, SETTINGS[peft_type]):
        shown = [f"{key}={json.dumps(value)[:60]}" for key, value in unknown.items()]
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: {file} has settings that adapters of type {peft_type} are not known to "
            f"have: {', '.join(shown[:3])}{', …' if len(shown) > 3 else ''}; PEFT would drop them "
            "and compute something else; set them to null if they mean nothing",
        )
    if config.get("task_type") in _UNSUPPORTED_TASKS:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: its task_type is {config['task_type']}, so it has a classification head and "
            "no text to score; only language-model adapters (CAUSAL_LM) can be evaluated",
        )


def _find_weights(folder: Path, what: str, *, allow_pickle: bool) -> Path:
    safe, pickled = folder / SAFE_WEIGHTS_FILE, folder / PICKLED_WEIGHTS_FILE
    # lexists: a dangling or looping link is reported as what it is, once it is opened.
    if safe.exists() or safe.is_symlink():
        return safe
    if not (pickled.exists() or pickled.is_symlink()):
        raise CellError(
            FailureKind.UNREADABLE,
            f"{what}: {folder} holds no weights ({SAFE_WEIGHTS_FILE}); "
            f"there is: {', '.join(sorted(file.name for file in folder.iterdir())) or 'nothing'}",
        )
    if not allow_pickle:
        raise CellError(
            FailureKind.UNSAFE,
            f"{what}: {pickled} is pickled, and unpickling can run code; save the adapter again "
            "as safetensors, or say `allow_pickle: true` for this adapter",
        )
    return pickled
