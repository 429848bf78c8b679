"""What a sweep asks of an adapter beyond attaching it: merged, its own tokenizer, more tokens.

Decides, from files alone, whether that can be done, how many tokens the adapter's base needs, and
what to warn of. Leaves to others: doing it (the engine), and comparing it (`core.comparable`).
"""

from dataclasses import replace
from pathlib import Path

from raypeft.core.records import Adapter, FailureKind, Subject
from raypeft.core.spec import AdapterEntry, Base
from raypeft.engines.adapters import read_adapter_files
from raypeft.engines.bases import BaseFacts, read_base_tensors, tokenizer_digest
from raypeft.engines.merging import check_mergeable
from raypeft.engines.pickled import pickled_tensors
from raypeft.engines.precision import difference, training_precision
from raypeft.engines.tokenizer import extends, num_tokens
from raypeft.engines.vocabulary import base_vocabulary, saved_vocabulary
from raypeft.errors import CellError


def as_asked(adapter: Adapter, entry: AdapterEntry, base: Base, facts: BaseFacts) -> Adapter:
    """Return an adapter as its entry in the sweep wants it.

    Raises:
        CellError: `unsupported` if it cannot be merged, `unreadable` without a tokenizer.
    """
    what = f"adapter {adapter.name!r}"
    if entry.merge:
        check_mergeable(adapter.config, what=what, quantization=base.quantization)
        adapter = replace(adapter, merge=True)
    if entry.tokenizer == "base":
        return adapter
    try:
        own = tokenizer_digest(entry.path, entry.revision)
    except CellError as error:
        raise CellError(
            FailureKind(error.kind),
            f"{what}: `tokenizer: own` is asked for, and {error.message}; save the tokenizer "
            "beside the adapter, or leave this out",
        ) from error
    if own == tokenizer_digest(base.tokenizer or facts.path):
        return adapter  # the base's: the same prompts, tokens and identity
    return replace(adapter, tokenizer=entry.path, tokenizer_digest=own)


def needed_vocabulary(adapter: Adapter, base: Base, facts: BaseFacts) -> int | None:
    """Return to how many tokens the base must be enlarged for an adapter; None if it need not be.

    Raises:
        CellError: `does_not_fit` if the adapter's embedding and its tokenizer do not agree,
            `unsupported` on a quantised base.
    """
    what = f"adapter {adapter.name!r}"
    files = read_adapter_files(
        adapter.path, what=what, revision=adapter.revision, allow_pickle=adapter.allow_pickle
    )
    folder = Path(facts.path)
    rows = base_vocabulary(folder)
    tensors = pickled_tensors(files, what=what) if files.tensors is None else files.tensors
    saved = saved_vocabulary(tensors, read_base_tensors(folder), rows, what=what)
    size = saved
    if adapter.tokenizer_digest and rows is not None:
        tokens = num_tokens(adapter.tokenizer or adapter.path, adapter.revision)
        if saved is not None and tokens > saved:
            raise CellError(
                FailureKind.DOES_NOT_FIT,
                f"{what}: its tokenizer has {tokens} tokens, and the embedding it brings has rows "
                f"for {saved}; take both from the same training",
            )
        if tokens > (saved or rows):
            size = tokens
    if size is not None and base.quantization is not None:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: it needs {size} tokens where the base has {rows}, and a base quantised to "
            f"{base.quantization} cannot be enlarged; leave out `quantization`",
        )
    return size


def enlarged_baseline(subject: Subject, base: Base, facts: BaseFacts) -> Subject | None:
    """Return the baseline that an adapter with a larger vocabulary is compared with.

    It is enlarged alike, and asked with the adapter's tokenizer if that brings one. None for other
    subjects, and for a tokenizer in which the base's tokens have other numbers: the base would be
    given words it never saw, and a gain over that would say nothing.

    Raises:
        CellError: `unreadable` if the base's tokenizer cannot be loaded.
    """
    adapter, size = subject.adapter, subject.vocab_size
    if adapter is None or size is None:
        return None
    name = f"{base.name}@{size}"
    words = adapter.tokenizer_digest
    if not words:
        return Subject(id=name, base=base.name, vocab_size=size)
    own = adapter.tokenizer or adapter.path
    if not extends(own, adapter.revision, base.tokenizer or facts.path):
        return None
    return Subject(id=f"{name}-{words[:8]}", base=base.name, vocab_size=size, speaker=adapter)


def precision_warning(adapter: Adapter, base: Base, facts: BaseFacts) -> str:
    """Return how an adapter's training differed in precision from its evaluation, if known."""
    files = read_adapter_files(
        adapter.path,
        what=f"adapter {adapter.name!r}",
        revision=adapter.revision,
        allow_pickle=adapter.allow_pickle,
    )
    trained = training_precision(files.folder, files.config)
    if trained is None:
        return ""
    return difference(trained, dtype=facts.dtype, quantization=base.quantization)
