"""Stand-ins for what lm-eval scores with: a task on frozen documents, a model on given answers.

Both are lm-eval's own classes with the sources cut off: the task loads no dataset and draws no
prompts, the model computes nothing. Everything that makes a number (filters, `process_results`,
targets, aggregation, stderr) stays lm-eval's and the task's own code.
"""

import copy
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from raypeft.core.records import Answer, Request, RequestSet
from raypeft.harness.codec import thaw_json


class FrozenDocs:
    """The documents of a request set in the place of the task's evaluation split.

    It is as long as the whole split, as lm-eval reports it; only documents within the limit are
    held. Each access thaws anew, as a dataset does: a metric may change what it is given.

    Args:
        request_set: The request set.
    """

    def __init__(self, request_set: RequestSet) -> None:
        self._documents = request_set.documents
        self._num_docs = request_set.num_docs

    def __len__(self) -> int:
        return self._num_docs

    def __iter__(self) -> Iterator[Any]:
        return (thaw_json(document.doc) for document in self._documents)

    def __getitem__(self, position: int) -> Any:
        return thaw_json(self._documents[position].doc)

    def pairs(self) -> Iterator[tuple[int, Any]]:
        """Yield (doc_id, document)."""
        return ((document.doc_id, thaw_json(document.doc)) for document in self._documents)

    @property
    def features(self) -> dict[str, None]:
        """The columns, as `datasets.Dataset` names them; lm-eval looks fields up in them."""
        return dict.fromkeys(self[0])


class NoDataset:
    """Stands in for `task.dataset`: whoever reaches for it learns why it is not there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # Copying and pickling ask for such names and expect this answer.
            raise AttributeError(name)
        raise LookupError(f"scoring uses frozen documents, so there is no dataset.{name}")

    def __getitem__(self, key: object) -> Any:
        raise LookupError(f"scoring uses frozen documents, so there is no dataset[{key!r}]")


class OnFrozenDocs:
    """Mixed in before a class of lm-eval tasks; overrides only where its documents come from."""

    frozen_docs: FrozenDocs
    _instances: list[Instance]

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing."""
        self.dataset = NoDataset()

    @property
    def eval_docs(self) -> FrozenDocs:
        """The frozen documents."""
        return self.frozen_docs

    def fewshot_docs(self) -> None:
        """Draw no shots: prompts are frozen, so no sampler is needed."""

    def doc_iterator(self, **kwargs: Any) -> Iterator[tuple[int, Any]]:
        """Yield the frozen documents; a limit has been applied when they were frozen."""
        return self.frozen_docs.pairs()

    def build_all_requests(self, **kwargs: Any) -> None:
        """Keep the instances that `with_instances` installed."""


def on_frozen_docs(request_set: RequestSet, task_class: type) -> type:
    """Return the class that stands in for a class of lm-eval tasks."""
    members = {"frozen_docs": FrozenDocs(request_set), "__module__": task_class.__module__}
    return type(task_class.__name__, (OnFrozenDocs, task_class), members)


def with_instances(task: Any, request_set: RequestSet) -> Any:
    """Return a view of the task that holds fresh instances of the frozen requests.

    Views share everything else, so several can be scored from one task.
    """
    view = copy.copy(task)
    view._instances = build_instances(request_set)
    return view


def build_instances(request_set: RequestSet) -> list[Instance]:
    """Return lm-eval's instances in the task's order, without responses."""
    docs = {document.doc_id: document for document in request_set.documents}
    repeats = count_repeats(request_set.requests)
    thawed = functools.cache(lambda doc_id: thaw_json(docs[doc_id].doc))
    return [
        Instance(
            request_type=request.request_type,
            doc=thawed(request.doc_id),
            arguments=copy.deepcopy(tuple(request.arguments)),
            idx=request.idx,
            metadata=(request_set.task, request.doc_id, repeats[request.index]),
        )
        for request in task_order(request_set.requests)
    ]


def task_order(requests: Sequence[Request]) -> list[Request]:
    """Return the first call of each instance in the order in which the task made them.

    Requests are in the order in which the model is called: one request type after the other.
    """
    firsts = [request for request in requests if request.repeat == 0]
    if len({request.request_type for request in firsts}) == 1:
        return firsts
    return sorted(firsts, key=lambda request: (request.doc_id, request.idx, request.index))


def count_repeats(requests: Sequence[Request]) -> dict[int, int]:
    """Return for the index of each instance's first call how often it is called."""
    counts: dict[int, int] = {}
    first = -1
    for request in requests:
        if request.repeat == 0:
            first = request.index
        counts[first] = request.repeat + 1
    return counts


class ReplayModel(LM):  # type: ignore[misc]
    """A model of lm-eval that gives the answers it was given, in order.

    Args:
        requests: The requests of a request set, in order.
        answers: One for each, in the same order.
    """

    def __init__(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        super().__init__()
        self._answers: dict[str, list[Answer]] = defaultdict(list)
        for request, answer in zip(requests, answers, strict=True):
            self._answers[request.request_type].append(answer)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log-likelihood, greedy flag) for each request."""
        return [(a.logprob, a.is_greedy) for a in self._of("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of each text."""
        return [a.logprob for a in self._of("loglikelihood_rolling", requests)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the text for each request."""
        return [a.text for a in self._of("generate_until", requests)]

    def _of(self, request_type: str, requests: list[Instance]) -> list[Any]:
        answers = self._answers[request_type]
        assert len(answers) == len(requests), (request_type, len(answers), len(requests))
        return answers
