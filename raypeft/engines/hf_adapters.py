"""Attaches a PEFT adapter to a loaded base, and proves that all of it is there and does something.

Decides: whether an adapter fits the base (the tensors of its file are exactly those PEFT expects,
in the same shapes), is finite, and changes the model's output. Leaves to others: reading the
files beforehand (`adapters`), proving that the base is clean again (`hf_snapshot`).

PEFT loads an adapter whose tensors all have other names with one warning, and one with too many
tensors with none (the model then answers as the base): hence the comparison of key sets here.
"""

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights

from raypeft.core.peft_settings import unknown_settings
from raypeft.core.records import FailureKind, Json
from raypeft.engines.adapters import CONFIG_FILE, AdapterFiles
from raypeft.engines.hf_tied import check_tied
from raypeft.engines.pickled import load_pickled
from raypeft.errors import CellError

ADAPTER_NAME = "default"  # PEFT's own; never part of a tuner's parameter names
_PROBE_ROWS = 2
_PROBE_TOKENS = 16


class Fit(NamedTuple):
    """How an adapter's file compares with what PEFT expects for it on this base.

    Attributes:
        missing: Tensors that PEFT expects and the file lacks.
        unexpected: Tensors of the file that PEFT does not use.
        misshapen: Tensors in another shape, as text.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {label} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for label, names in (
                ("missing from the file", self.missing),
                ("in the file that nothing uses", self.unexpected),
                ("of another shape", self.misshapen),
            )
            if names
        ]
        return "; ".join(parts)


def attach(
    base: torch.nn.Module,
    files: AdapterFiles,
    *,
    name: str,
    device: str,
    base_vocabulary: int | None = None,
) -> PeftModel:
    """Attach an adapter to a base, in place, and return the model that has both.

    Whatever is raised, the base must be taken for dirty afterwards.

    Args:
        base: The base, clean.
        files: The adapter's files.
        name: The adapter's name, for messages.
        device: Where its weights go.
        base_vocabulary: How many tokens the base had before it was enlarged; None if it was not.

    Raises:
        CellError: `does_not_fit`, `not_applied`, `not_finite` or `unsupported`.
    """
    what = f"adapter {name!r}"
    config = _load_config(files, what)
    if files.tensors is None:
        load_pickled(files, what=what, device="cpu")  # refused before there is a model to repair
    # As PeftModel.from_pretrained: checkpoints of renamed architectures are mapped on loading.
    key_mapping: dict[str, str] | None = getattr(base, "_checkpoint_conversion_mapping", None)
    if config.is_prompt_learning:
        key_mapping = None
    if config.peft_type == "FROD":
        # As it is by default; said aloud, torch does not warn of it in every process.
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        # What PEFT warns of on loading (missing keys and the like) is an error below.
        warnings.simplefilter("ignore")
        model: PeftModel | None = None
        try:
            kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
            model = kind(base, config, ADAPTER_NAME, autocast_adapter_dtype=True)
            check_tied(model, files, what=what, num_tokens=base_vocabulary)
            _load_weights(model, files, key_mapping, what=what, device=device)
            _check_finite(model, what)
        except Exception as error:
            if model is not None:
                # Spares the caller a reload in most cases; the proof is the caller's.
                with contextlib.suppress(Exception):
                    detach(model)
            if isinstance(error, CellError | torch.OutOfMemoryError | MemoryError):
                raise
            raise _refusal(what, error, _target(base, base_vocabulary)) from error
    model.eval()
    return model


def detach(model: PeftModel) -> torch.nn.Module:
    """Take the adapter off again and return the base; whether it is clean must be proven.

    Raises:
        Exception: Whatever PEFT raises; not every adapter type can be unloaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base: torch.nn.Module
        if model.active_peft_config.is_prompt_learning:
            base = model.get_base_model()  # the prompt is no part of the base
        else:
            base = model.unload()
    return base


def compare_with_file(model: PeftModel, files: AdapterFiles, *, device: str) -> Fit:
    """Compare the tensors of an adapter's file with those that PEFT holds for it.

    Args:
        model: The model with the adapter attached.
        files: The adapter's files.
        device: Where pickled weights are loaded to be looked at.
    """
    shapes = _file_shapes(files, device)
    # Full embeddings are saved beside an adapter that targets them: allowed, not required.
    expected = _expected_shapes(model, with_embeddings=False)
    allowed = expected | _expected_shapes(model, with_embeddings=True)
    misshapen = [
        f"{key} {shapes[key]} instead of {allowed[key]}"
        for key in sorted(shapes.keys() & allowed.keys())
        if shapes[key] != allowed[key]
    ]
    return Fit(
        missing=tuple(sorted(expected.keys() - shapes.keys())),
        unexpected=tuple(sorted(shapes.keys() - allowed.keys())),
        misshapen=tuple(misshapen),
    )


def probe_rows(vocab_size: int, extra: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the fixed token rows whose logits must be finite and must differ from the base's.

    Args:
        vocab_size: Size of the base's vocabulary.
        extra: Tokens that this adapter needs to see before it does anything.
        device: Where the rows go.
    """
    numbers = torch.arange(_PROBE_ROWS * _PROBE_TOKENS).reshape(_PROBE_ROWS, _PROBE_TOKENS)
    rows = (numbers * 7919 + 13) % vocab_size
    if extra:
        tail = torch.tensor([[token % vocab_size for token in extra]] * _PROBE_ROWS)
        # More tokens follow, since an invocation sequence acts on what comes after it.
        rows = torch.cat([rows, tail, rows], dim=1)
    return rows.to(device)


def probe_tokens(config: Mapping[str, Json]) -> tuple[int, ...]:
    """Return the tokens without which an adapter of this config changes nothing."""
    tokens: list[int] = list(config.get("alora_invocation_tokens") or ())
    for field in ("trainable_token_indices", "token_indices"):
        value = config.get(field) or ()
        for part in value.values() if isinstance(value, dict) else [value]:
            tokens.extend(part)
    return tuple(tokens)


def _load_config(files: AdapterFiles, what: str) -> PeftConfig:
    peft_type = files.config["peft_type"]
    if peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: the installed PEFT has no adapters of type {peft_type}; install a newer PEFT",
        )
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    known = frozenset(field.name for field in dataclasses.fields(kind)) | {"peft_version"}
    # PEFT drops settings it does not know, which can change what the adapter computes.
    unknown = [
        f"{key}={json.dumps(value)}" for key, value in unknown_settings(files.config, known).items()
    ]
    if unknown:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: {files.folder / CONFIG_FILE} has settings that the installed PEFT does not "
            f"know: {', '.join(unknown[:3])}; install a newer PEFT",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config: PeftConfig = kind.from_pretrained(str(files.folder))
    config.inference_mode = True
    return config


def _load_weights(
    model: PeftModel,
    files: AdapterFiles,
    key_mapping: dict[str, str] | None,
    *,
    what: str,
    device: str,
) -> None:
    result = model.load_adapter(
        str(files.folder),
        ADAPTER_NAME,
        is_trainable=False,
        autocast_adapter_dtype=True,
        torch_device=device,
        key_mapping=key_mapping,
    )
    if not _expected_shapes(model, with_embeddings=False):
        raise CellError(
            FailureKind.NOT_APPLIED,
            f"{what}: its config names nothing that this base has, so that PEFT attached nothing; "
            "is it for another base?",
        )
    fit = compare_with_file(model, files, device=device)
    if not fit and (key_mapping or _converts_keys(model)):
        # This architecture's keys are renamed on loading: names differ by right, and what
        # could not be placed is what PEFT reported itself.
        fit = Fit(tuple(result.missing_keys), tuple(result.unexpected_keys))
    if not fit:
        raise CellError(
            FailureKind.DOES_NOT_FIT,
            f"{what}: the tensors of {files.weights} are not those that its config and this base "
            f"imply: {fit}; is it for another base, or saved by another tool?",
        )


def _target(base: Any, base_vocabulary: int | None) -> str:
    """Return what an adapter was to be attached to; the number of tokens differs most often."""
    rows = base.get_input_embeddings().weight.shape[0]
    if base_vocabulary is None or rows == base_vocabulary:
        return f"this base, which has {rows} tokens here"
    return f"a copy of this base that was enlarged from {base_vocabulary} to {rows} tokens for it"


def _refusal(what: str, error: Exception, target: str) -> CellError:
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        text = f"the file lacks the tensor {text}"
    if isinstance(error, ImportError | NotImplementedError):
        return CellError(FailureKind.UNSUPPORTED, f"{what}: PEFT cannot attach it: {text}")
    shown = text if len(text) < 600 else f"{text[:600]}…"
    return CellError(
        FailureKind.DOES_NOT_FIT,
        f"{what}: it cannot be attached to {target}; all else is the base's own: "
        f"{type(error).__name__}: {shown}",
    )


def _file_shapes(files: AdapterFiles, device: str) -> dict[str, tuple[int, ...]]:
    if files.tensors is not None:
        return {name: tensor.shape for name, tensor in files.tensors.items()}
    weights = load_peft_weights(str(files.folder), device=device)
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _expected_shapes(model: PeftModel, *, with_embeddings: bool) -> dict[str, tuple[int, ...]]:
    # "auto" would ask the hub for the base's config; both cases are wanted here anyway.
    state = get_peft_model_state_dict(
        model, adapter_name=ADAPTER_NAME, save_embedding_layers=with_embeddings
    )
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _converts_keys(model: PeftModel) -> bool:
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:  # before transformers 5 no architecture converted adapter weights
        return False
    return get_checkpoint_conversion_mapping(model.config.model_type) is not None


def _check_finite(model: PeftModel, what: str) -> None:
    state: dict[str, Any] = get_peft_model_state_dict(
        model, adapter_name=ADAPTER_NAME, save_embedding_layers=False
    )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CellError(FailureKind.NOT_FINITE, f"{what}: {name} holds NaN or infinity")
