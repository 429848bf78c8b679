"""The documents an adapter changed, side by side with its baseline, as one JSON value.

Decides what a reader is shown of them and how much of it goes into the page: a million samples
must not stop a browser, so each pair of adapter and task gets an equal share of a budget, and
what is left out is counted. Texts are what models said: everything hidden in them is made visible
here, and nothing in them is ever markup.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeGuard

from raypeft.core.records import Json, Request
from raypeft.report.text import clean, excerpt
from raypeft.store.changes import Change, Changes, Texts
from raypeft.store.jsontext import load_json

MAX_BYTES = 2_500_000
"""Of all samples in the page, as JSON."""

MAX_PER_PAIR = 20
MAX_PROMPT_CHARS = 1500
MAX_ANSWER_CHARS = 1500
MAX_CHOICES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One adapter and its baseline on one task.

    Attributes:
        base: The base's name.
        adapter: The adapter's name.
        subject: The adapter's subject.
        baseline: The baseline's subject.
        task: The task.
        metric: The metric by which documents changed.
        filter: Its filter.
        request_set: Digest of what both answered.
        higher_is_better: The metric's direction.
        changes: Where they differ.
    """

    base: str
    adapter: str
    subject: str
    baseline: str
    task: str
    metric: str
    filter: str
    request_set: str
    higher_is_better: bool
    changes: Changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One document as it was asked.

    Attributes:
        requests: Its requests, by `idx`.
        target: `doc_to_target(doc)`.
    """

    requests: tuple[Request, ...]
    target: Json


def per_pair(num_pairs: int) -> int:
    """Return how many documents of each pair are looked up at most, on each side."""
    return max(2, min(MAX_PER_PAIR, 2500 // max(num_pairs, 1))) // 2 + 1


def sample_data(
    pairs: Sequence[Pair],
    asked: Mapping[str, Mapping[int, Asked]],
    said: Mapping[tuple[str, str], Mapping[int, Texts]],
    *,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Json]:
    """Return everything the page shows of samples.

    Args:
        pairs: Adapters and tasks.
        asked: For each request set its documents, as far as they were looked up.
        said: For each subject and task what was said to them.
        max_bytes: What may not be exceeded.
    """
    book = _Book(asked, said)
    left = max_bytes
    queues = [_alternating(pair.changes) for pair in pairs]
    shown: list[list[Json]] = [[] for _ in pairs]
    # One of each pair in turn: when the budget ends, every pair has had its share.
    for turn in range(max(map(len, queues), default=0)):
        for number, (pair, queue) in enumerate(zip(pairs, queues, strict=True)):
            if turn >= len(queue):
                continue
            item, size = book.item(pair, queue[turn])
            if size <= left:
                left -= size
                shown[number].append(item)
                book.keep()
            else:
                book.forget()
    return {
        "pairs": [_pair_value(pair, items) for pair, items in zip(pairs, shown, strict=True)],
        "questions": book.questions,
        "answers": book.answers,
    }


def _alternating(changes: Changes) -> list[Change]:
    both = zip_longest(changes.worse, changes.better)
    return [change for pair in both for change in pair if change is not None][:MAX_PER_PAIR]


def _pair_value(pair: Pair, items: list[Json]) -> dict[str, Json]:
    return {
        "base": clean(pair.base),
        "adapter": clean(pair.adapter),
        "task": clean(pair.task),
        "metric": clean(pair.metric if pair.filter == "none" else f"{pair.metric},{pair.filter}"),
        "better": pair.changes.num_better,
        "worse": pair.changes.num_worse,
        "higher": pair.higher_is_better,
        "items": items,
    }


class _Book:
    """Questions and answers, each written once although many pairs show them."""

    def __init__(
        self,
        asked: Mapping[str, Mapping[int, Asked]],
        said: Mapping[tuple[str, str], Mapping[int, Texts]],
    ) -> None:
        self._asked, self._said = asked, said
        self.questions: list[Json] = []
        self.answers: list[Json] = []
        self._places: dict[tuple[str, ...], int] = {}
        self._kept = (0, 0)
        self._new: list[tuple[str, ...]] = []

    def item(self, pair: Pair, change: Change) -> tuple[list[Json], int]:
        """Return one document of a pair and how many bytes it adds."""
        question = self._question(pair, change.doc_id)
        sides = [
            self._answer(subject, pair, change.doc_id) for subject in (pair.baseline, pair.subject)
        ]
        values = [_finite(value) for value in (change.before, change.after)]
        item: list[Json] = [change.doc_id, question, *sides, *values]
        new = [item, *self.questions[self._kept[0] :], *self.answers[self._kept[1] :]]
        return item, sum(_size(value) for value in new)

    def keep(self) -> None:
        """Keep what the last item added."""
        self._kept = (len(self.questions), len(self.answers))
        self._new.clear()

    def forget(self) -> None:
        """Take back what the last item added."""
        del self.questions[self._kept[0] :]
        del self.answers[self._kept[1] :]
        for name in self._new:
            del self._places[name]
        self._new.clear()

    def _question(self, pair: Pair, doc_id: int) -> int:
        def make() -> Json:
            found = self._asked.get(pair.request_set, {}).get(doc_id)
            if found is None:
                return ["(the store that holds the request set could not be read)", "", 0]
            return question_value(found)

        return self._place(("question", pair.request_set, str(doc_id)), self.questions, make)

    def _answer(self, subject: str, pair: Pair, doc_id: int) -> int:
        def make() -> Json:
            asked = self._asked.get(pair.request_set, {}).get(doc_id)
            texts = self._said.get((subject, pair.task), {}).get(doc_id)
            requests = () if asked is None else asked.requests
            return ["(no such sample)", 0] if texts is None else answer_value(requests, texts)

        name = ("answer", subject, pair.task, pair.filter, str(doc_id))
        return self._place(name, self.answers, make)

    def _place(self, name: tuple[str, ...], values: list[Json], make: Callable[[], Json]) -> int:
        if name not in self._places:
            self._places[name] = len(values)
            self._new.append(name)
            values.append(make())
        return self._places[name]


def _finite(value: float) -> Json:
    # JSON has no infinity, and a page whose data cannot be read shows no documents at all. As a
    # text of this spelling JavaScript still compares it as a number.
    return value if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"


def _size(value: Json) -> int:
    # As it stands in the page: there `<`, `>`, `&` and `'` are written as escapes of six letters.
    text = json.dumps(value)
    return len(text) + 5 * sum(text.count(char) for char in "<>&'")


# --- texts ------------------------------------------------------------------------------------


def question_value(asked: Asked) -> list[Json]:
    """Return prompt, target, and how many characters of the prompt are not shown."""
    first = asked.requests[0].arguments if asked.requests else ()
    prompt = str(first[0]) if first else ""
    shown = excerpt(prompt, MAX_PROMPT_CHARS, end=True)  # the question stands behind the shots
    target = excerpt(_target_text(asked), MAX_ANSWER_CHARS)
    return [shown.text, target.text, shown.num_left_out]


def _target_text(asked: Asked) -> str:
    target, requests = asked.target, asked.requests
    if isinstance(target, int) and 0 <= target < len(requests) and len(requests) > 1:
        return f"choice {target + 1}: {str(requests[target].arguments[-1]).strip()}"
    return target if isinstance(target, str) else json.dumps(target)


def answer_value(requests: Sequence[Request], texts: Texts) -> list[Json]:
    """Return what was said, fit to be read, and how many characters are not shown."""
    responses, filtered = load_json(texts.responses), load_json(texts.filtered_responses)
    lines = _choice_lines(requests, responses) or _text_lines(responses, filtered)
    shown = excerpt("\n".join(lines), MAX_ANSWER_CHARS)
    return [shown.text, shown.num_left_out]


def _choice_lines(requests: Sequence[Request], responses: Json) -> list[str]:
    """Return one line for each choice, the likeliest marked; nothing if these are no choices."""
    if not isinstance(responses, list) or len(responses) < 2:
        return []
    firsts = [call[0] if isinstance(call, list) and call else None for call in responses]
    values = [float(f[0]) for f in firsts if _is_likelihood(f)]
    if len(values) < len(firsts):
        return []
    top = max(values)
    lines = []
    for number, value in enumerate(values[:MAX_CHOICES]):
        choice = str(requests[number].arguments[-1]).strip() if number < len(requests) else ""
        mark = "→" if value == top else " "
        lines.append(f"{mark} {value:9.3f}  {choice or f'choice {number + 1}'}")
    if len(values) > MAX_CHOICES:
        lines.append(f"  … and {len(values) - MAX_CHOICES} more choices")
    return lines


def _is_likelihood(first: Json) -> TypeGuard[list[int | float]]:
    return (
        isinstance(first, list)
        and len(first) == 2
        and isinstance(first[0], int | float)
        and isinstance(first[1], bool)
    )


def _text_lines(responses: Json, filtered: Json) -> list[str]:
    said = [_plain(response) for call in _listed(responses) for response in _listed(call)]
    counted = [_plain(value) for value in _listed(filtered)]
    lines = said if len(said) < 2 else [f"[{n}] {text}" for n, text in enumerate(said, start=1)]
    if counted and counted != said:
        lines = [*lines, f"counted as: {', '.join(counted)}"]
    return lines


def _listed(value: Json) -> list[Json]:
    return value if isinstance(value, list) else [value]


def _plain(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)
