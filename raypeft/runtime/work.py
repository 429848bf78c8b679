"""What runs away from the driver on a CPU: loading, freezing and scoring, as plain functions.

Module-level, so that a pool can send them by name; the heavy packages behind them are imported
where they run and not where they are submitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raypeft.core.document_shards import answers_to, documents_of_shard, shard_of_documents
from raypeft.core.interim import ShardValues, values_of
from raypeft.core.records import (
    Answer,
    EngineSpec,
    EvaluationSettings,
    Frozen,
    RequestSet,
    Scored,
)
from raypeft.engines.base import Engine


@dataclass(frozen=True, slots=True)
class ChatSource:
    """Where the tokenizer stands whose chat template the prompts are built with.

    Attributes:
        path: Local folder or hub id.
        revision: Hub revision, if any.
        trust_remote_code: Whether the sweep file allows the tokenizer's own code.
        template: True for the tokenizer's default, or the name of one of its templates.
    """

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    template: bool | str = True


def build(spec: EngineSpec) -> Engine:
    """Load a base."""
    from raypeft.engines.build import build_engine

    return build_engine(spec)


def freeze(
    entry: str,
    settings: EvaluationSettings,
    include_path: Sequence[str],
    chat: ChatSource | None,
    only: Sequence[str] = (),
) -> Frozen:
    """Build the request sets of one task entry.

    Args:
        entry: A task, group or tag of lm-eval.
        settings: What to freeze it under.
        include_path: Folders with own task files.
        chat: Whose chat template to apply; None applies none.
        only: Leaf tasks to try; all if empty.
    """
    from raypeft.engines.tokenizer import load_chat_template
    from raypeft.harness.freeze import freeze_entry

    template = None
    if chat is not None:
        template = load_chat_template(
            chat.path, chat.revision, chat.trust_remote_code, chat.template
        )
    return freeze_entry(entry, settings, include_path=include_path, chat=template, only=only)


def score(
    request_set: RequestSet, answers: Sequence[Answer], include_path: Sequence[str]
) -> Scored:
    """Score one cell.

    Args:
        request_set: With its documents.
        answers: To every request.
        include_path: Folders with own task files.
    """
    from raypeft.harness.score import score as score_answers

    return score_answers(request_set, answers, include_path=include_path)


def look(
    request_set: RequestSet,
    shard_index: int,
    shard_count: int,
    answers: Sequence[Answer],
    metric: str,
    include_path: Sequence[str],
) -> ShardValues:
    """Score one shard of one cell, cut by documents, for a look at it.

    Args:
        request_set: The whole one, with its documents.
        shard_index: Which shard.
        shard_count: Of how many.
        answers: To the requests of the shard, others among them or not.
        metric: See `raypeft.core.interim.LookSettings`.
        include_path: Folders with own task files.
    """
    from raypeft.harness.score import score as score_answers

    shard = shard_of_documents(request_set, shard_index, shard_count)
    # No standard error is wanted of a part, and lm-eval takes its time for some.
    settings = replace(shard.settings, bootstrap_iters=0)
    shard = replace(shard, settings=settings)
    scored = score_answers(shard, answers_to(shard, answers), include_path=include_path)
    return values_of(scored, documents_of_shard(request_set, shard_index, shard_count), metric)
