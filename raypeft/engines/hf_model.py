"""A base in transformers with at most one adapter attached, as an lm-eval model.

Decides: how the base is loaded, when it must be loaded again, and whether an attached adapter
does anything. Leaves to others: requests and answers (`hf`), PEFT's part (`hf_adapters`), what a
clean base is (`hf_snapshot`).

HFLM is built around the base and the adapter attached afterwards: given `peft=`, HFLM would
resize the base's vocabulary for adapters and not for the baseline, and compare two models that
differ in more than the adapter.
"""

import contextlib
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.utils import logging as transformers_logging

from raypeft.core.records import Adapter, EngineSpec, FailureKind, Subject
from raypeft.core.routing import Lane, Route
from raypeft.engines.adapters import AdapterFiles, open_adapter
from raypeft.engines.bases import TOKENIZER_FILES, check_quick_digest, find_base
from raypeft.engines.folders import resolve_folder
from raypeft.engines.hf_adapters import attach, detach, probe_rows, probe_tokens
from raypeft.engines.hf_failures import as_failure, free_memory
from raypeft.engines.hf_private import (
    Variant,
    check_merge,
    copy_of,
    deviation,
    enlarge,
    merge,
    merging_note,
    variant_of,
)
from raypeft.engines.hf_rotary import changing_rotary, reset_rotary
from raypeft.engines.hf_shared import RowLimit
from raypeft.engines.hf_snapshot import Snapshot, take_snapshot
from raypeft.engines.hf_tokenizers import Tokenizers
from raypeft.engines.progress import got_on
from raypeft.engines.quantization import check_quantization, loading_arguments
from raypeft.engines.zero_adapter import why_effect
from raypeft.errors import CellError, EngineFatalError

_RECENT_TEXTS = 16

ROUNDING_LOGITS = 5e-5
"""Untrained adapters that factor the weights anew (PiSSA, OLoRA, HRA, OSF) move float32 logits by
up to 1.5e-5; a trained one moves them by tenths."""

logger = logging.getLogger(__name__)


class HFModel(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """A base, proven to be clean or to have one adapter attached that does something.

    Args:
        spec: What to load.

    Raises:
        CellError: `load_failed`, `unsafe` or `out_of_memory` if the base cannot be loaded.
    """

    AUTO_MODEL_CLASS: Any
    _model: Any
    _base: Any
    _limit: RowLimit  # of whoever shares contexts (`hf`)

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._recent: OrderedDict[str, list[int]] = OrderedDict()
        self._tokens_seen = 0
        self._attached: Adapter | None = None
        self._peft: Any = None
        self._route: Route | None = None
        self._variant: Variant | None = None
        self.merging_note = ""
        with _loading(spec):
            self._load()
            self._base = self._model
            self._tokenizers = Tokenizers(self)
            self._forgets_rows = any(True for _ in changing_rotary(self._base))
            self._snapshot = self._look()
            self._base_logits = self._probe(())
            if bool(self._base_logits.isnan().any()):
                raise ValueError(
                    f"its logits are NaN in {spec.dtype}; another dtype may do (bfloat16 reaches "
                    "as far as float32, float16 does not)"
                )

    def switch_to(self, subject: Subject) -> None:
        """Make the model, and its tokenizer, what answers for a subject.

        Most subjects are answered from the shared base (`switch`); one that is merged, or has a
        larger vocabulary, from a private copy that is thrown away afterwards.
        """
        self._tokenizers.use(subject.opened)
        variant = variant_of(subject)
        if variant is None:
            self.switch(subject.attached)
        elif variant != self._variant:
            self.restore()
            self._answer_from_a_copy(subject, variant)

    def _answer_from_a_copy(self, subject: Subject, variant: Variant) -> None:
        what = f"subject {subject.id!r}"
        self._variant = variant
        self._model = copy_of(self._base, what)
        if variant.vocab_size is not None:
            enlarge(self._model, variant.vocab_size, what)
        adapter = subject.adapter
        if adapter is None:
            return
        files = open_adapter(adapter)
        self._route = files.route
        extra = probe_tokens(files.config)
        alone = self._probe(extra)
        self._model = self._with_adapter(self._model, files, adapter)
        attached = self._probe(extra)
        self._check_applied(adapter, alone, attached)
        if adapter.merge:
            what = f"adapter {adapter.name!r}"
            self._model = merge(self._model, what)
            merged = self._probe(extra)
            self._check_applied(adapter, alone, merged)
            cost = deviation(merged, attached)
            check_merge(cost, self._base.dtype, what)
            self.merging_note = merging_note(cost, deviation(attached, alone))

    @property
    def row_limits(self) -> dict[int, int]:
        """Most tokens at once by the length of the prefix, as `base.Learning` has it."""
        return self._limit.most_tokens

    @property
    def lane(self) -> Lane | None:
        """How what is attached shares the base; None is the base alone."""
        if self._variant is not None:
            return Lane.ISOLATED
        return None if self._route is None else self._route.lane

    @property
    def standing(self) -> str | None:
        """What the model is now, as a key: None is the base alone."""
        if self._variant is not None:
            return str(self._variant)
        return None if self._attached is None else self._attached.digest

    def _look(self) -> Snapshot:
        if self._forgets_rows:
            reset_rotary(self._base)
        return take_snapshot(self._base)

    def _drop_copy(self) -> None:
        if self._variant is not None:
            self._variant, self._model, self.merging_note = None, self._base, ""
            self._route = None
            free_memory()

    def switch(self, adapter: Adapter | None) -> None:
        """Make the model the base alone, or the base with this adapter, proven to be applied."""
        if self._variant is not None:
            self.restore()  # a copy is a copy only if the base is what it was
        if _standing(adapter) == _standing(self._attached):
            return
        self.restore()
        if adapter is None:
            return
        files = open_adapter(adapter)
        extra = probe_tokens(files.config)
        expected = self._probe(extra) if extra else self._base_logits
        self._attached, self._route = adapter, files.route
        self._peft = self._with_adapter(self._base, files, adapter)
        self._model = self._peft
        self._check_applied(adapter, expected, self._probe(extra))

    def _with_adapter(self, model: Any, files: AdapterFiles, adapter: Adapter) -> Any:
        rows = self._base.get_input_embeddings().weight.shape[0]
        return attach(
            model, files, name=adapter.name, device=str(self._device), base_vocabulary=rows
        )

    def _check_applied(self, adapter: Adapter, expected: torch.Tensor, found: torch.Tensor) -> None:
        if bool((expected.isfinite() & ~found.isfinite()).any()):
            raise CellError(
                FailureKind.NOT_FINITE,
                f"adapter {adapter.name!r}: with it the model's logits are NaN or infinite",
            )
        if not adapter.expects_effect:
            self._check_unchanged(adapter, expected, found)
            return
        if torch.equal(expected, found) or (
            found.dtype == torch.float32
            and float((expected - found).abs().max()) <= ROUNDING_LOGITS
        ):
            raise CellError(
                FailureKind.NO_EFFECT,
                f"adapter {adapter.name!r}: it is attached and changes nothing: on "
                f"{expected.shape[0]} rows of {expected.shape[1]} tokens the logits are those of "
                "the base within rounding; was it trained, and saved afterwards?",
            )

    def _check_unchanged(
        self, adapter: Adapter, expected: torch.Tensor, found: torch.Tensor
    ) -> None:
        moved = deviation(found, expected)
        what = f"adapter {adapter.name!r}"
        dtype = str(expected.dtype).removeprefix("torch.")
        if why := why_effect(moved.largest, moved.mean, dtype, what):
            raise CellError(FailureKind.UNSUPPORTED, why)

    def restore(self) -> None:
        """Make the model the base alone, proven to be what was loaded; load it again if not.

        After an adapter of the lane `isolated` the base is always loaded again.

        Raises:
            EngineFatalError: If the base cannot be had back.
        """
        left = self._variant
        self._drop_copy()
        peft, self._peft = self._peft, None
        adapter, self._attached = self._attached, None
        taken, self._route = self._route, None
        self._model = self._base
        if taken is None or taken.lane is not Lane.ISOLATED:
            difference = self._why_dirty(peft)
            if not difference:
                return
            if adapter is not None:
                logger.warning(
                    "adapter %r of type %s should leave the base as it was, but %s; the base is "
                    "loaded again",
                    adapter.name,
                    adapter.peft_type,
                    difference,
                )
            elif left is not None:
                logger.warning(
                    "a private copy (%s) should leave the base as it was, but %s; the base is "
                    "loaded again",
                    left,
                    difference,
                )
        del peft
        self._reload()

    def _why_dirty(self, peft: Any) -> str:
        """Take an adapter off and return how the base is not what was loaded; empty if it is."""
        try:
            if peft is not None and detach(peft) is not self._base:
                return "taking it off gave another model"
            return self._snapshot.difference(self._look())
        except Exception as error:  # noqa: BLE001 - whatever PEFT left behind, it is thrown away
            return f"it cannot be taken off ({type(error).__name__}: {error})"

    def _reload(self) -> None:
        self._base = self._model = None
        free_memory()
        try:
            self._create_model(**self._load_arguments)
            self._model.eval()
            self._model.tie_weights()
        except Exception as error:
            raise EngineFatalError(
                f"base {self._spec.base!r} had to be loaded again, and could not: {error}"
            ) from error
        self._base = self._model
        if difference := self._snapshot.difference(self._look()):
            raise EngineFatalError(
                f"base {self._spec.base!r} is another one than when this slot was started: "
                f"{difference}"
            )

    def _probe(self, extra: tuple[int, ...]) -> torch.Tensor:
        """Return the logits of fixed token rows."""
        vocab_size = self._base.config.get_text_config().vocab_size
        rows = probe_rows(vocab_size, extra, self._device)
        if self.backend == "seq2seq":
            return self._model_call(rows, torch.ones_like(rows), rows).cpu()
        # Prompt-type adapters put positions of their own in front.
        return self._model_call(rows)[:, -rows.shape[1] :].cpu()

    # --- HFLM, built around the base ----------------------------------------------------------

    def _load(self) -> None:
        spec = self._spec
        folder = find_base(
            spec.base, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
        check_quick_digest(spec, folder)
        tokenizer = spec.tokenizer and resolve_folder(
            spec.tokenizer, what="tokenizer", files=TOKENIZER_FILES
        )
        attention = (
            {}
            if spec.attn_implementation is None
            else {"attn_implementation": spec.attn_implementation}
        )
        super().__init__(
            # A folder and not a hub id: nothing is looked up while loading.
            pretrained=str(folder),
            tokenizer=tokenizer and str(tokenizer),
            device=spec.device,
            dtype=spec.dtype,
            softmax_dtype=spec.softmax_dtype,
            batch_size=spec.batch_size,
            max_length=spec.max_length,
            add_bos_token=spec.add_bos_token,
            trust_remote_code=spec.trust_remote_code,
            **attention,
        )

    def _create_model(self, **arguments: Any) -> None:
        """Load the model as HFLM does, and refuse weights that transformers would make up."""
        self._load_arguments = dict(arguments)
        spec = self._spec
        check_quantization(spec.quantization, what=f"base {spec.base!r}", device=spec.device)
        arguments |= loading_arguments(spec.quantization, dtype=spec.dtype, device=spec.device)
        recorder = _Recorder(self.AUTO_MODEL_CLASS)
        self.AUTO_MODEL_CLASS = recorder
        try:
            with _without_progress_bars():
                super()._create_model(**arguments)
        finally:
            self.AUTO_MODEL_CLASS = recorder.wrapped
        if recorder.missing:
            raise ValueError(
                f"its weight files lack {len(recorder.missing)} tensors that the model needs "
                f"({', '.join(recorder.missing[:3])}), which transformers would fill with random "
                "numbers"
            )

    def forget_texts(self) -> None:
        """Forget the texts encoded last: the tokenizer is another one now."""
        self._recent.clear()

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Encode as HFLM does, remembering the last few texts.

        lm-eval encodes a document's context once for each choice.
        """
        if add_special_tokens is not None or left_truncate_len is not None or kwargs:
            tokens: list[int] = super().tok_encode(
                string, add_special_tokens, left_truncate_len, **kwargs
            )
            return tokens
        if string not in self._recent:
            self._recent[string] = super().tok_encode(string)
        self._recent.move_to_end(string)
        if len(self._recent) > _RECENT_TEXTS:
            self._recent.popitem(last=False)
        return list(self._recent[string])

    def _forget_rows(self) -> None:
        """Let the rows of earlier forward passes have no part in the next one."""
        if self._forgets_rows:
            reset_rotary(self._model)

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._tokens_seen += inps.numel()
        self._forget_rows()
        logits: torch.Tensor = super()._model_call(inps, *args, **kwargs)
        got_on()
        return logits

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        processors = LogitsProcessorList([_RefuseNaN()])
        self._forget_rows()
        with warnings.catch_warnings():
            # Of every batch of prompt-type adapters; lm-eval with PEFT answers the same.
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            tokens: torch.Tensor = super()._model_generate(
                context, *args, logits_processor=processors, **kwargs
            )
        self._tokens_seen += tokens.numel()
        return tokens


def _standing(adapter: Adapter | None) -> tuple[str, bool] | None:
    """Return what is attached, and what was proven of it."""
    return None if adapter is None else (adapter.digest, adapter.expects_effect)


class _Recorder:
    """Stands in for an Auto class while a model is loaded, and keeps what was missing."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.missing: list[str] = []

    def from_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        model, info = self.wrapped.from_pretrained(*args, output_loading_info=True, **kwargs)
        self.missing = sorted(map(str, info["missing_keys"]))
        return model


class _RefuseNaN(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Ends a generation whose logits are NaN: greedy search would go on with token 0."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        got_on()  # called for every token of a generation
        if bool(scores.isnan().any()):
            raise CellError(
                FailureKind.NOT_FINITE,
                f"the logits became NaN at token {input_ids.shape[1]} of a generation",
            )
        return scores


@contextlib.contextmanager
def _loading(spec: EngineSpec) -> Iterator[None]:
    """Turn whatever goes wrong while a base is loaded into a `CellError` that names it."""
    what = f"base {spec.base!r}"
    if spec.options:
        raise CellError(
            FailureKind.SPEC,
            f"{what}: the hf engine has no options, but got {', '.join(sorted(spec.options))}",
        )
    if spec.device.startswith("cuda") and not torch.cuda.is_available():
        raise CellError(
            FailureKind.LOAD_FAILED,
            f"{what}: device {spec.device!r} is not there: torch {torch.__version__} sees no GPU "
            "in this process",
            retryable=True,
        )
    try:
        yield
    except CellError as error:
        unsafe = error.kind == FailureKind.UNSAFE
        kind = FailureKind.UNSAFE if unsafe else FailureKind.LOAD_FAILED
        raise CellError(kind, error.message, error.retryable) from error
    except Exception as error:
        failure = as_failure(error, what, "")
        if failure.kind is FailureKind.CRASHED:
            needs_code = "trust_remote_code" in str(error)
            kind = FailureKind.UNSAFE if needs_code else FailureKind.LOAD_FAILED
            raise CellError(kind, f"{what} cannot be loaded: {error}") from error
        raise CellError(failure.kind, failure.message, failure.retryable) from error


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
