"""What is kept of a built task: its model calls and its documents.

Requests are kept in the order in which lm-eval would call the model, documents as the task saw
them. Decided here is also what cannot be kept without changing a score; that is refused by name.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from lm_eval.api.instance import Instance
from lm_eval.utils import handle_non_serializable, hash_string

from raypeft.core.records import Document, FailureKind, Json, Request, RequestType
from raypeft.errors import CellError
from raypeft.harness.codec import freeze_json
from raypeft.harness.replay import task_order


def freeze_requests(instances: Sequence[Instance]) -> tuple[Request, ...]:
    """Return requests as `evaluate` calls the model: by type, in order, repeats one by one.

    Raises:
        CellError: If a model cannot be asked this, or scoring could not restore the order.
    """
    requests = tuple(_requests(instances))
    made = [(i.doc_id, i.idx, i.request_type) for i in instances]
    found = [(r.doc_id, r.idx, r.request_type) for r in task_order(requests)]
    if made != found:
        raise CellError(
            FailureKind.UNSUPPORTED, "it mixes request types in an order that cannot be restored"
        )
    return requests


def _requests(instances: Sequence[Instance]) -> Iterator[Request]:
    by_type: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_type[instance.request_type].append(instance)
    index = 0
    for request_type, of_type in by_type.items():
        for instance in of_type:
            arguments = _arguments(instance)
            for repeat in range(instance.repeats):
                yield Request(
                    index=index,
                    doc_id=instance.doc_id,
                    idx=instance.idx,
                    repeat=repeat,
                    request_type=cast(RequestType, request_type),
                    arguments=arguments,
                )
                index += 1


_ARGUMENT_TYPES: dict[str, tuple[type, ...]] = {
    "loglikelihood": (str, str),
    "loglikelihood_rolling": (str,),
    "generate_until": (str, dict),
}


def _arguments(instance: Instance) -> tuple[Json, ...]:
    """Return an instance's arguments, checked to be what a model can be asked."""
    kind = instance.request_type
    if kind not in get_args(RequestType):
        allowed = ", ".join(get_args(RequestType))
        raise CellError(
            FailureKind.UNSUPPORTED, f"it makes {kind!r} requests; engines answer {allowed}"
        )
    expected = _ARGUMENT_TYPES[kind]
    place = f"document {instance.doc_id}, request {instance.idx}"
    if tuple(type(argument) for argument in instance.args) != expected:
        found = ", ".join(type(argument).__name__ for argument in instance.args)
        wanted = ", ".join(kind.__name__ for kind in expected)
        raise CellError(
            FailureKind.UNSUPPORTED, f"{place}: arguments of types ({found}), not ({wanted})"
        )
    frozen = tuple(freeze_json(argument, place) for argument in instance.args)
    if frozen != tuple(instance.args):
        raise CellError(
            FailureKind.UNSUPPORTED, f"{place}: generation settings that JSON cannot hold"
        )
    return frozen


def freeze_documents(
    instances: Sequence[Instance],
    docs: Mapping[int, tuple[Any, Json]],
    doc_to_target: Callable[[Any], Any],
) -> tuple[Document, ...]:
    """Return the documents that the instances belong to.

    Args:
        instances: The task's instances, built.
        docs: For each doc_id the document, and its frozen form at the moment the task got it.
        doc_to_target: The task's.

    Raises:
        CellError: If the task changed a document since: it would be scored on another one.
    """
    checked: dict[int, Any] = {}
    for instance in instances:
        doc_id = instance.doc_id
        if instance.doc is checked.get(doc_id, checked):
            continue
        if freeze_json(instance.doc, f"document {doc_id}") != docs[doc_id][1]:
            raise CellError(
                FailureKind.UNSUPPORTED, f"it changes document {doc_id} while it builds its prompts"
            )
        checked[doc_id] = instance.doc
    return tuple(_document(doc_id, *docs[doc_id], doc_to_target) for doc_id in checked)


def _document(doc_id: int, doc: Any, frozen: Json, doc_to_target: Callable[[Any], Any]) -> Document:
    target = doc_to_target(doc)
    return Document(
        doc_id=doc_id,
        doc=frozen,
        target=freeze_json(target, f"target of document {doc_id}"),
        doc_hash=document_hash(doc),
        target_hash=hash_string(str(target)),
    )


def document_hash(doc: Any) -> str:
    """Return the hash of a document as `lm_eval.evaluate` writes it into samples."""
    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(text))
