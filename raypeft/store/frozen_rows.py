"""What freezing gave, as table rows and JSON values and back, without loss.

Decides which column holds which field of a request set. Answers and scores are in `rows`.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa

from raypeft.core.records import (
    Document,
    EvaluationSettings,
    Failure,
    FailureKind,
    Group,
    Json,
    Request,
    RequestSet,
)
from raypeft.store.jsontext import dump_json, load_json, readable
from raypeft.store.tables import build, header_of

# --- request sets -----------------------------------------------------------------------------


def request_set_header(request_set: RequestSet) -> dict[str, Json]:
    """Return everything of a request set but its requests and documents."""
    return {
        "digest": request_set.digest,
        "task": request_set.task,
        "entry": request_set.entry,
        "output_type": request_set.output_type,
        "version": request_set.version,
        "num_fewshot": request_set.num_fewshot,
        "num_docs": request_set.num_docs,
        "settings": settings_json(request_set.settings),
        "config": dict(request_set.config),
        "tokenizer_digest": request_set.tokenizer_digest,
        "lm_eval_version": request_set.lm_eval_version,
    }


def settings_json(settings: EvaluationSettings) -> dict[str, Json]:
    """Return evaluation settings as a JSON value."""
    value = {item.name: getattr(settings, item.name) for item in fields(settings)}
    if settings.gen_kwargs is not None:
        value["gen_kwargs"] = dict(settings.gen_kwargs)
    return value


def request_set_fields(header: Mapping[str, Json]) -> dict[str, Any]:
    """Return the arguments of `RequestSet` that a header holds."""
    return dict(header) | {"settings": EvaluationSettings(**header["settings"])}


def request_set_table(request_set: RequestSet) -> pa.Table:
    """Return a request set as a `requests` table.

    Raises:
        ValueError: If its requests are not numbered from 0 or its documents not sorted.
    """
    if [request.index for request in request_set.requests] != list(
        range(len(request_set.requests))
    ):
        raise ValueError(f"requests of {request_set.task} are not numbered 0, 1, 2, … in order")
    doc_ids = [document.doc_id for document in request_set.documents]
    if doc_ids != sorted(set(doc_ids)):
        raise ValueError(f"documents of {request_set.task} are not sorted by a unique doc_id")
    waiting = {document.doc_id: document for document in request_set.documents}
    rows = []
    for request in request_set.requests:
        document = waiting.pop(request.doc_id, None)
        rows.append(_request_row(request_set, request.doc_id, request, document))
    rows += [
        _request_row(request_set, document.doc_id, None, document) for document in waiting.values()
    ]
    return build("requests", rows, header=request_set_header(request_set))


def _request_row(
    request_set: RequestSet, doc_id: int, request: Request | None, document: Document | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"digest": request_set.digest, "task": request_set.task, "doc_id": doc_id}
    row |= dict.fromkeys(("index", "idx", "repeat", "request_type", "arguments"))
    row |= dict.fromkeys(("context", "continuation", "gen_kwargs"))
    row |= dict.fromkeys(("doc", "target", "doc_hash", "target_hash"))
    if request is not None:
        second = request.arguments[1] if len(request.arguments) > 1 else None
        row |= {
            "index": request.index,
            "idx": request.idx,
            "repeat": request.repeat,
            "request_type": request.request_type,
            "arguments": dump_json(list(request.arguments)),
            "context": readable(request.arguments[0] if request.arguments else None),
            "continuation": readable(second),
            "gen_kwargs": dump_json(second) if isinstance(second, dict) else None,
        }
    if document is not None:
        row |= {
            "doc": dump_json(document.doc),
            "target": dump_json(document.target),
            "doc_hash": document.doc_hash,
            "target_hash": document.target_hash,
        }
    return row


def request_set_of(table: pa.Table) -> RequestSet:
    """Return the request set of a `requests` table."""
    requests, documents = [], []
    for row in table.to_pylist():
        if row["index"] is not None:
            requests.append(
                Request(
                    row["index"],
                    row["doc_id"],
                    row["idx"],
                    row["repeat"],
                    row["request_type"],
                    tuple(load_json(row["arguments"])),
                )
            )
        if row["doc"] is not None:
            documents.append(
                Document(
                    row["doc_id"],
                    load_json(row["doc"]),
                    load_json(row["target"]),
                    row["doc_hash"],
                    row["target_hash"],
                )
            )
    return RequestSet(
        **request_set_fields(header_of(table)),
        requests=tuple(requests),
        documents=tuple(sorted(documents, key=lambda document: document.doc_id)),
    )


# --- groups and failures ----------------------------------------------------------------------


def group_json(group: Group) -> dict[str, Json]:
    """Return a group as a JSON value."""
    return {
        "name": group.name,
        "children": list(group.children),
        "alias": group.alias,
        "aggregate_metric_list": [dict(item) for item in group.aggregate_metric_list],
        "metadata": dict(group.metadata),
    }


def group_of(value: Mapping[str, Json]) -> Group:
    """Return the group of a JSON value."""
    return Group(
        name=value["name"],
        children=tuple(value["children"]),
        alias=value["alias"],
        aggregate_metric_list=tuple(value["aggregate_metric_list"]),
        metadata=value["metadata"],
    )


def failure_json(failure: Failure) -> dict[str, Json]:
    """Return a failure as a JSON value."""
    return asdict(failure)


def failure_of(value: Mapping[str, Json]) -> Failure:
    """Return the failure of a JSON value."""
    return Failure(**(dict(value) | {"kind": FailureKind(value["kind"])}))
