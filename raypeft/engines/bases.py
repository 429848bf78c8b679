"""Reads a base's folder before anything is loaded: digest, dtype, size, context length.

Decides: which files of a folder are the base (those that transformers would load, and the
tokenizer's), whether they are safe and whole, and what the base's identity is. Leaves to others:
loading it (`hf`), and whether its values make sense.

The digest is over content, so a copy of the same base on another node or under another name is
the same base. Hashing 140 GB takes minutes; a memo of file digests, keyed by everything the file
system says about a file, makes that once.
"""

import json
import platform
from collections.abc import Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from raypeft.core.identity import digest
from raypeft.core.records import EngineSpec, FailureKind, Json
from raypeft.engines.base_config import check_remote_code, loading_dtype, longest_row
from raypeft.engines.folders import BASE_FILES, REMOTE_CODE_FILES, read_failure, resolve_folder
from raypeft.engines.tensorfiles import TensorInfo, hash_file, read_header
from raypeft.errors import CellError

BASE_VERSION = 1
TOKENIZER_VERSION = 1
QUICK_VERSION = 1

FileKey: TypeAlias = tuple[str, int, int, int, int]
"""(path, size, mtime_ns, ctime_ns, inode): equal keys are taken for equal content."""

_WEIGHTS_FILE = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model*.pt", "*.pth")
_HASHING_THREADS = 8

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
# Where a file came from and which library wrote it changes no score.
_JSON_WITHOUT_EFFECT = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "_from_model_config"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """What a base's files say.

    Attributes:
        path: Its local folder.
        digest: Digest of its content: weights, config, generation config, tokenizer.
        quick_digest: The same without the weights' values; see `quick_digest`.
        dtype: What it is to be loaded in: `float32`, `bfloat16` or `float16`.
        model_type: As in its config, for instance `llama`.
        num_parameters: Values in its weight files.
        num_bytes: Size of its weight files.
        max_length: Longest row in tokens, as lm-eval's HFLM derives it.
    """

    path: str
    digest: str
    quick_digest: str
    dtype: str
    model_type: str
    num_parameters: int
    num_bytes: int
    max_length: int


def read_base(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    tokenizer: str | None = None,
    memo: MutableMapping[FileKey, str] | None = None,
) -> BaseFacts:
    """Read and check a base's files.

    Args:
        path: Local folder, or hub id (taken from the hub's cache where the hub is switched off).
        revision: Hub revision.
        dtype: `auto` takes the config's dtype, `float32` if it has none.
        trust_remote_code: Whether the base's own Python code may run.
        tokenizer: Folder of another tokenizer, if the base's own is not used.
        memo: File digests from earlier calls; filled with the new ones.

    Raises:
        CellError: `spec`, `unreadable`, `unsafe` or `unsupported`.
    """
    what = f"base {path!r}"
    folder = find_base(path, revision=revision, trust_remote_code=trust_remote_code)
    config = _read_config(folder, what)
    weights = _weight_files(folder, what)
    tensors = [tensor for file in weights for tensor in read_header(file, what=what).values()]
    code = sorted(folder.glob("*.py")) if trust_remote_code else []
    hashes = _hash_files([*weights, *code], what, {} if memo is None else memo)
    words = folder if tokenizer is None else _tokenizer_folder(tokenizer, None)
    limits = _read_json(words / "tokenizer_config.json", what) or {}
    return BaseFacts(
        path=str(folder),
        digest=_base_digest(folder, hashes, tokenizer_digest(str(words)), what),
        quick_digest=quick_digest(folder, tokenizer=tokenizer, trust_remote_code=trust_remote_code),
        dtype=loading_dtype(config, dtype, what),
        model_type=str(config.get("model_type", "")),
        num_parameters=sum(tensor.num_elements for tensor in tensors),
        num_bytes=sum(file.stat().st_size for file in weights),
        max_length=longest_row(config, limits.get("model_max_length")),
    )


def find_base(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Return a base's local folder after the checks that need no reading of weights.

    Raises:
        CellError: `spec`, `unreadable` or `unsafe`.
    """
    what = f"base {path!r}"
    wanted = BASE_FILES + (REMOTE_CODE_FILES if trust_remote_code else ())
    folder = resolve_folder(path, what="base", revision=revision, files=wanted)
    config = _read_config(folder, what)
    check_remote_code(config, folder, what, trust_remote_code=trust_remote_code)
    read_base_tensors(folder)
    return folder


def quick_digest(
    folder: Path, *, tokenizer: str | None = None, trust_remote_code: bool = False
) -> str:
    """Return a digest of a base's files that takes no reading of its weights.

    It covers names, sizes and headers of the weight files, and the content of everything small.
    Another copy under the same path is found out by it unless it has the same tensors in the same
    places; it tells where a base is the wrong one, and does not identify it.

    Args:
        folder: The base's folder, from `find_base`.
        tokenizer: Folder or hub id of another tokenizer, if the base's own is not used.
        trust_remote_code: Whether the base's own Python code may run.

    Raises:
        CellError: `spec`, `unreadable` or `unsafe`.
    """
    what = f"base {str(folder)!r}"
    code = sorted(folder.glob("*.py")) if trust_remote_code else []
    sizes: dict[str, Json] = {}
    for file in _weight_files(folder, what):
        tensors = sorted(read_header(file, what=what).items())
        entries = [[name, tensor.dtype, *tensor.shape, tensor.start] for name, tensor in tensors]
        sizes[file.name] = {"bytes": _file_key(file, what)[1], "tensors": entries}
    words = folder if tokenizer is None else _tokenizer_folder(tokenizer, None)
    value = {
        "weights": sizes,
        "code": _hash_files(code, what, {}),
        "config": _normalised(_read_config(folder, what)),
        "generation_config": _normalised(_read_json(folder / "generation_config.json", what) or {}),
        "tokenizer": tokenizer_digest(str(words)),
    }
    return digest("base-quick", QUICK_VERSION, value)


def check_quick_digest(spec: EngineSpec, folder: Path) -> None:
    """Compare a base's folder with what the sweep was planned with, if that is known.

    Raises:
        CellError: `load_failed` if it is another base; another node may have the right one.
    """
    if not spec.base_quick_digest:
        return
    found = quick_digest(folder, tokenizer=spec.tokenizer, trust_remote_code=spec.trust_remote_code)
    if found != spec.base_quick_digest:
        raise CellError(
            FailureKind.LOAD_FAILED,
            f"base {spec.base!r}: {folder} on node {platform.node()} is another one than when the "
            f"sweep was planned (quick digest of config, tokenizer and weight headers {found}, "
            f"expected {spec.base_quick_digest}); copy the planned one there, or plan again",
            retryable=True,
        )


def read_base_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a base's weight files, by name, without their values.

    Raises:
        CellError: `unreadable` or `unsafe`.
    """
    what = f"base {str(folder)!r}"
    return {
        name: tensor
        for file in _weight_files(folder, what)
        for name, tensor in read_header(file, what=what).items()
    }


def tokenizer_digest(path: str, revision: str | None = None) -> str:
    """Return the digest of a folder's tokenizer files, chat templates among them.

    Raises:
        CellError: `spec` or `unreadable` if there is no tokenizer.
    """
    what = f"tokenizer {path!r}"
    folder = _tokenizer_folder(path, revision)
    files = sorted(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern))
    if not files:
        raise CellError(
            FailureKind.UNREADABLE,
            f"{what}: {folder} holds no tokenizer files (tokenizer.json, tokenizer_config.json, "
            "…); save the tokenizer beside the weights",
        )
    value = {
        str(file.relative_to(folder)): _normalised(_read_json(file, what))
        if file.suffix == ".json" and file.name != "tokenizer.json"
        else _hash_files([file], what, {})
        for file in files
    }
    return digest("tokenizer", TOKENIZER_VERSION, value)


def _base_digest(folder: Path, hashes: Mapping[str, str], tokenizer: str, what: str) -> str:
    value = {
        "weights": sorted(hashes.items()),
        "config": _normalised(_read_config(folder, what)),
        "generation_config": _normalised(_read_json(folder / "generation_config.json", what) or {}),
        "tokenizer": tokenizer,
    }
    return digest("base", BASE_VERSION, value)


def _tokenizer_folder(path: str, revision: str | None) -> Path:
    return resolve_folder(path, what="tokenizer", revision=revision, files=TOKENIZER_FILES)


def _weight_files(folder: Path, what: str) -> list[Path]:
    if (folder / _WEIGHTS_FILE).exists():  # transformers looks for this one first
        return [folder / _WEIGHTS_FILE]
    index = _read_json(folder / _WEIGHTS_INDEX, what)
    if index is None:
        raise _no_weights(folder, what)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CellError(
            FailureKind.UNREADABLE, f"{what}: {folder / _WEIGHTS_INDEX} holds no weight_map"
        )
    files = [folder / str(name) for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CellError(
            FailureKind.UNREADABLE,
            f"{what}: {len(missing)} of {len(files)} weight files that {_WEIGHTS_INDEX} names are "
            f"missing, first {missing[0]}; finish the download",
        )
    return files


def _no_weights(folder: Path, what: str) -> CellError:
    pickled = sorted(file for pattern in _PICKLED_WEIGHTS for file in folder.glob(pattern))
    if pickled:
        return CellError(
            FailureKind.UNSAFE,
            f"{what}: its weights are only pickled ({pickled[0].name}), and unpickling can run "
            "code; convert them to safetensors (load once where you trust them, then "
            "save_pretrained)",
        )
    return CellError(
        FailureKind.UNREADABLE,
        f"{what}: {folder} holds no weights ({_WEIGHTS_FILE} or {_WEIGHTS_INDEX})",
    )


def _read_config(folder: Path, what: str) -> dict[str, Json]:
    config = _read_json(folder / "config.json", what)
    if (folder / "adapter_config.json").exists():
        # transformers would load the base it names and attach the adapter, without a word.
        raise CellError(
            FailureKind.SPEC,
            f"{what}: {folder} is an adapter's folder (it holds adapter_config.json); "
            "name the base, and list this folder under its adapters",
        )
    if config is None:
        raise CellError(
            FailureKind.UNREADABLE,
            f"{what}: {folder} holds no config.json; is it a model's folder?",
        )
    return config


def _read_json(file: Path, what: str) -> dict[str, Json] | None:
    """Return a file's JSON object, or None if there is no such file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise read_failure(what, file, error) from None
    except (ValueError, RecursionError) as error:
        raise CellError(FailureKind.UNREADABLE, f"{what}: {file} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CellError(FailureKind.UNREADABLE, f"{what}: {file} does not hold a JSON object")
    return value


def _normalised(value: Json) -> Json:
    if not isinstance(value, dict):
        return value
    return {key: value[key] for key in value if key not in _JSON_WITHOUT_EFFECT}


def _hash_files(
    files: Iterable[Path], what: str, memo: MutableMapping[FileKey, str]
) -> dict[str, str]:
    """Return content digests by file name, from the memo where it has them."""
    keys = {file: _file_key(file, what) for file in files}
    unknown = [file for file, key in keys.items() if key not in memo]
    try:
        with ThreadPoolExecutor(max_workers=_HASHING_THREADS) as threads:
            for file, value in zip(unknown, threads.map(hash_file, unknown), strict=True):
                memo[keys[file]] = value
    except OSError as error:
        raise read_failure(what, Path(error.filename or ""), error) from None
    return {file.name: memo[key] for file, key in keys.items()}


def _file_key(file: Path, what: str) -> FileKey:
    try:
        status = file.stat()
    except OSError as error:
        raise read_failure(what, file, error) from None
    return (
        str(file.resolve()),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )
