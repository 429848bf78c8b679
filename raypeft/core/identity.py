"""Identity is content: digests of request sets, freezes and cells.

A digest covers what can change a score and nothing else: no path, name, node, batch size or
attempt. Each kind carries a version in front; raising it is a decision, and a test pins known
digests so that it cannot happen by accident.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from raypeft.core.records import (
    Document,
    EngineSpec,
    EvaluationSettings,
    Json,
    Request,
    Subject,
)

REQUEST_SET_VERSION = 1
FREEZE_VERSION = 1
CELL_VERSION = 1
SCORE_VERSION = 1

DIGEST_CHARS = 32
"""128 bits: enough for content addresses, short enough for file names."""


def canonical(value: Json) -> str:
    """Return JSON text that is equal for equal values on every machine.

    Raises:
        TypeError: If the value is no JSON value.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(kind: str, version: int, value: Json) -> str:
    """Return the digest of a JSON value, separated by kind and version."""
    text = canonical([kind, version, value])
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:DIGEST_CHARS]


def request_set_digest(
    *,
    task: str,
    version: str,
    output_type: str,
    requests: Iterable[Request],
    documents: Iterable[Document],
    tokenizer_digest: str,
) -> str:
    """Return the digest of a request set.

    It covers every argument of every request in order, doc and target hashes, repeats,
    generation settings (they are arguments), the task's version, and tokenizer and chat template
    where one was applied. Two request sets of equal digest ask a model the same things and are
    scored against the same targets.
    """
    hasher = hashlib.sha256()

    def feed(value: Json) -> None:
        hasher.update(canonical(value).encode("ascii"))
        hasher.update(b"\n")

    feed(["request_set", REQUEST_SET_VERSION, task, version, output_type, tokenizer_digest])
    for request in requests:
        feed(
            [
                request.index,
                request.doc_id,
                request.idx,
                request.repeat,
                request.request_type,
                list(request.arguments),
            ]
        )
    for document in documents:
        feed([document.doc_id, document.doc_hash, document.target_hash])
    return hasher.hexdigest()[:DIGEST_CHARS]


def freeze_key(
    *,
    entry: str,
    settings: EvaluationSettings,
    tokenizer_digest: str,
    include_digest: str,
    lm_eval_version: str,
) -> str:
    """Return the key under which the freeze of one task entry is found again.

    Args:
        entry: The task entry's name in the sweep.
        settings: What it is frozen under.
        tokenizer_digest: Tokenizer and chat template, empty if none is applied.
        include_digest: Digest of the files below the include paths.
        lm_eval_version: Bundled tasks change with lm-eval.
    """
    value = {
        "entry": entry,
        "settings": asdict(settings),
        "tokenizer": tokenizer_digest,
        "include": include_digest,
        "lm_eval": lm_eval_version,
    }
    return digest("freeze", FREEZE_VERSION, value)


def cell_numerics(engine: EngineSpec, subject: Subject) -> dict[str, Json]:
    """Return the settings that can change a subject's scores: its engine's and its own.

    Its own are named only where they differ from what is usual, so that the other cells keep
    their identity: `merged`, `tokenizer` (the digest of an adapter's own), `vocab_size`, and
    `again` for a baseline that is answered a second time, whose answers must not be taken from
    the first.
    """
    numerics = engine.numerics()
    adapter = subject.adapter
    if adapter is not None and adapter.merge:
        numerics["merged"] = True
    if subject.tokenizer_digest:
        numerics["tokenizer"] = subject.tokenizer_digest
    if subject.vocab_size is not None:
        numerics["vocab_size"] = subject.vocab_size
    if subject.again:
        numerics["again"] = True
    return numerics


def cell_key(
    *,
    base_digest: str,
    adapter_digest: str | None,
    request_set: str,
    numerics: Mapping[str, Json],
    sampling_seed: int | None = None,
) -> str:
    """Return a cell's identity: what its answers are stored under.

    Args:
        base_digest: Content of the base.
        adapter_digest: Content of the adapter; None for the baseline.
        request_set: Digest of the request set.
        numerics: Settings of the engine that can change a score.
        sampling_seed: Seed, if any request samples; None for greedy and log-likelihood requests.
    """
    value = {
        "base": base_digest,
        "adapter": adapter_digest,
        "request_set": request_set,
        "numerics": dict(numerics),
        "sampling_seed": sampling_seed,
    }
    return digest("cell", CELL_VERSION, value)


def score_key(*, cell: str, lm_eval_version: str, bootstrap_iters: int, scoring: str = "") -> str:
    """Return what a cell's results are stored under: its answers and what scored them.

    Args:
        cell: The cell's key.
        lm_eval_version: Metrics and filters are lm-eval's code.
        bootstrap_iters: Changes the stderr of metrics without a closed form.
        scoring: Digest of the task's metric settings and own Python (the include files).
    """
    value = {
        "cell": cell,
        "lm_eval": lm_eval_version,
        "bootstrap_iters": bootstrap_iters,
        "scoring": scoring,
    }
    return digest("score", SCORE_VERSION, value)
