"""The store: request sets, answers and scores, found again by what they are.

Shared between sweeps and nights. Decides names of files, what counts as stored, and what becomes
of damage: a file that is not what was written is set aside with a warning and treated as absent,
since everything here can be computed again. The first valid file of a name wins. Only the driver
writes. Tables for readers are the business of `output`.

    requests/<digest>.parquet                  a request set; documents and prompts stand here once
    frozen/<key>.json                          a task entry's request sets, groups and failures
    answers/<xx>/<cell>.<i>-of-<n>.parquet     one subject's answers to one shard
    scores/<xx>/<key>.parquet                  metrics and samples of a cell
    memo/<kind>/<digest>.json                  digests that are slow to compute
"""

import logging
import re
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa

from raypeft.core.identity import digest, request_set_digest
from raypeft.core.records import Answer, Frozen, Hardware, Json, RequestSet, Scored, SubjectAnswers
from raypeft.errors import SetupError, StoreError
from raypeft.store.files import Folder, Location
from raypeft.store.frozen_rows import (
    failure_json,
    failure_of,
    group_json,
    group_of,
    request_set_fields,
    request_set_header,
    request_set_of,
    request_set_table,
)
from raypeft.store.parquet import from_parquet, to_parquet
from raypeft.store.rows import (
    ShardFacts,
    answers_of,
    answers_table,
    facts_of,
    lost_facts,
    scored_of,
    scores_table,
)
from raypeft.store.sealed import seal, unseal
from raypeft.store.tables import CorruptError

logger = logging.getLogger(__name__)

FROZEN_VERSION = 1
MEMO_VERSION = 1

SMALLEST_FILE_BYTES = 12
"""A Parquet file is longer than its two magic words and the length of its footer."""

_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ANSWERS = re.compile(r"answers/[^/]+/([A-Za-z0-9_-]+)\.(\d+)-of-(\d+)\.parquet")
_SCORES = re.compile(r"scores/[^/]+/([A-Za-z0-9_-]+)\.parquet")


class Store:
    """Content-addressed files below one folder or URI.

    Args:
        location: A local folder, a URI that pyarrow knows, or a pyarrow filesystem.
    """

    def __init__(self, location: Location) -> None:
        self._folder = Folder(location)

    @property
    def place(self) -> str:
        """What messages call the store."""
        return self._folder.place()

    def check_writable(self) -> None:
        """Write, read back and remove a file.

        Raises:
            SetupError: If that does not work, with the place and the remedy.
        """
        self._folder.check_writable()

    def remove_leftovers(self, before_seconds: float) -> list[str]:
        """Remove what killed processes left half-written before a time (seconds since the epoch).

        Such files are never read. Give a time before which no living process can have started
        writing, since another sweep may be using the store.
        """
        return self._folder.remove_leftovers(before_seconds)

    # --- request sets and freezes -------------------------------------------------------------

    def put_request_set(self, request_set: RequestSet) -> None:
        """Store a request set under its digest; nothing happens if it is there.

        Raises:
            StoreError: If the digest is not that of its content.
        """
        content = _content_digest(request_set)
        if content != request_set.digest:
            raise StoreError(
                f"request set of {request_set.task}",
                f"its digest is {request_set.digest}, its content's is {content}",
                "the copy for a slot, without documents, cannot be stored",
            )
        if self.get_request_set(request_set.digest) is None:
            name = _requests_name(request_set.digest)
            self._folder.write(name, to_parquet(request_set_table(request_set)))

    def get_request_set(self, digest: str) -> RequestSet | None:
        """Return a request set by its digest; None if it is absent or damaged.

        Entry, settings, configuration and lm-eval's version are those of the first freeze that
        gave this content; `get_frozen` returns a freeze's own.
        """
        name = _requests_name(digest)
        table = self._table(name, "requests")
        if table is None:
            return None
        request_set = request_set_of(table)
        if not digest == request_set.digest == _content_digest(request_set):
            self._set_aside(name, "its content has another digest")
            return None
        return request_set

    def has_request_set(self, digest: str) -> bool:
        """Return whether a request set is there, without reading it."""
        return self._folder.exists(_requests_name(digest))

    def put_frozen(self, key: str, frozen: Frozen) -> None:
        """Store what freezing a task entry gave, its request sets apart.

        A freeze with failures is kept beside, for `get_frozen(partial=True)`: it must be tried
        again, but what did succeed must not be lost with the connection that it needed.
        """
        for request_set in frozen.request_sets:
            self.put_request_set(request_set)
        partial = bool(frozen.failures)
        if not partial and self.get_frozen(key) is not None:
            return
        value = {
            "entry": frozen.entry,
            "request_sets": [request_set_header(r) for r in frozen.request_sets],
            "groups": [group_json(group) for group in frozen.groups],
            "failures": {task: failure_json(f) for task, f in frozen.failures.items()},
        }
        self._folder.write(_frozen_name(key, partial), seal("frozen", FROZEN_VERSION, value))

    def get_frozen(self, key: str, *, partial: bool = False) -> Frozen | None:
        """Return what was stored under a freeze key; None if it or one of its sets is absent.

        Args:
            key: See `raypeft.core.identity.freeze_key`.
            partial: Return the last freeze that had failures instead of the one without.
        """
        value = self._sealed(_frozen_name(key, partial), "frozen", FROZEN_VERSION)
        if value is None:
            return None
        request_sets = []
        for header in value["request_sets"]:
            content = self.get_request_set(header["digest"])
            if content is None:
                return None
            # Freezes that ask the same share the content; how they came about is their own.
            request_sets.append(replace(content, **request_set_fields(header)))
        return Frozen(
            entry=value["entry"],
            request_sets=tuple(request_sets),
            groups=tuple(group_of(group) for group in value["groups"]),
            failures={task: failure_of(f) for task, f in value["failures"].items()},
        )

    # --- answers ------------------------------------------------------------------------------

    def put_answers(
        self,
        cell: str,
        shard_index: int,
        shard_count: int,
        answers: SubjectAnswers,
        hardware: Hardware,
        seconds: float,
    ) -> None:
        """Store one subject's answers to one shard; nothing happens if they are there.

        Args:
            cell: The cell's key.
            shard_index: Which shard.
            shard_count: Of how many.
            answers: The answers; failures are not stored.
            hardware: What answered.
            seconds: Wall time of the unit in its slot.

        Raises:
            ValueError: If it is a failure, the answers are not sorted, or there is no such shard.
        """
        if not 0 <= shard_index < shard_count:
            raise ValueError(f"there is no shard {shard_index} of {shard_count}")
        facts = ShardFacts(
            cell=cell,
            shard_index=shard_index,
            shard_count=shard_count,
            num_answers=len(answers.answers),
            hardware=hardware,
            seconds=answers.seconds,
            unit_seconds=seconds,
            tokens=answers.tokens,
            path=answers.path,
        )
        table = answers_table(answers, facts)
        if self._shard(cell, shard_index, shard_count) is None:
            self._folder.write(_answers_name(cell, shard_index, shard_count), to_parquet(table))

    def answered(self) -> dict[str, dict[int, set[int]]]:
        """Return what is answered: for each cell and shard count the indices of its shards.

        One listing, nothing is read: damage inside a file shows when it is read.
        """
        found: dict[str, dict[int, set[int]]] = {}
        for entry in self._folder.entries("answers"):
            match = _ANSWERS.fullmatch(entry.name)
            if match and entry.size_bytes > SMALLEST_FILE_BYTES:
                cell, index, count = match[1], int(match[2]), int(match[3])
                found.setdefault(cell, {}).setdefault(count, set()).add(index)
        return found

    def get_answers(
        self, cell: str, shard_count: int, *, num_requests: int | None = None
    ) -> tuple[list[Answer], tuple[ShardFacts, ...]]:
        """Return a cell's answers, all shards together, sorted by index.

        Args:
            cell: The cell's key.
            shard_count: Of which cut.
            num_requests: Requests of the request set; give it wherever it is known, since a
                missing end cannot be told otherwise.

        Returns:
            The answers and the facts of each shard.

        Raises:
            StoreError: If a shard is absent or damaged, or an answer is missing or there twice.
        """
        place = f"{self.place}: answers of cell {cell} in {shard_count} shards"
        shards = [self._shard(cell, index, shard_count) for index in range(shard_count)]
        missing = [index for index, shard in enumerate(shards) if shard is None]
        if missing:
            raise StoreError(
                place, f"shards {missing} are missing", "run the sweep again to answer them"
            )
        present = [shard for shard in shards if shard is not None]
        answers = sorted((a for part, _ in present for a in part), key=lambda a: a.index)
        expected = len(answers) if num_requests is None else num_requests
        if [answer.index for answer in answers] != list(range(expected)):
            raise StoreError(
                place,
                _odd_indices([answer.index for answer in answers], expected),
                f"remove {self.place}/answers/{cell[:2]}/{cell}.*-of-{shard_count}.parquet",
            )
        return answers, tuple(facts for _, facts in present)

    def get_shard(self, cell: str, index: int, shard_count: int) -> list[Answer]:
        """Return a cell's answers of one shard.

        Raises:
            StoreError: If it is absent or damaged.
        """
        shard = self._shard(cell, index, shard_count)
        if shard is None:
            raise StoreError(
                f"{self.place}: answers of cell {cell}",
                f"shard {index} of {shard_count} is missing or damaged",
                "run the sweep again to answer it",
            )
        return shard[0]

    def discard_answers(self, cell: str, shard_count: int) -> None:
        """Set a cell's shards aside, so that they are answered again.

        For shards that do not make a whole: cut by engines with other batches, for instance.
        """
        for index in range(shard_count):
            name = _answers_name(cell, index, shard_count)
            if self._folder.exists(name):
                self._set_aside(name, "its shards do not make a whole")

    def shard_facts(self, cell: str, shard_count: int) -> tuple[ShardFacts, ...]:
        """Return what is known about the runs that answered a cell, one for each shard.

        No answer is read. Shards that are gone have `rows.lost_facts`.
        """
        facts = []
        for index in range(shard_count):
            name = _answers_name(cell, index, shard_count)
            table = self._table(name, "answers", rows=False)
            found = lost_facts(cell, index, shard_count) if table is None else facts_of(table)
            facts.append(found)
        return tuple(facts)

    def _shard(self, cell: str, index: int, count: int) -> tuple[list[Answer], ShardFacts] | None:
        name = _answers_name(cell, index, count)
        table = self._table(name, "answers")
        if table is None:
            return None
        answers, facts = answers_of(table)
        says = (facts.cell, facts.shard_index, facts.shard_count, facts.num_answers)
        if says != (cell, index, count, len(answers)):
            self._set_aside(name, f"it says that it holds (cell, index, count, answers) {says}")
            return None
        return answers, facts

    # --- scores -------------------------------------------------------------------------------

    def put_scored(self, score_key: str, scored: Scored) -> None:
        """Store a scored cell under its score key; nothing happens if it is there."""
        if self.get_scored(score_key) is None:
            self._folder.write(_scores_name(score_key), to_parquet(scores_table(scored)))

    def get_scored(self, score_key: str) -> Scored | None:
        """Return a scored cell; None if it is absent or damaged."""
        table = self._table(_scores_name(score_key), "scores")
        return None if table is None else scored_of(table)

    def scored(self) -> set[str]:
        """Return the score keys that are there; one listing, nothing is read."""
        names = [
            _SCORES.fullmatch(entry.name)
            for entry in self._folder.entries("scores")
            if entry.size_bytes > SMALLEST_FILE_BYTES
        ]
        return {match[1] for match in names if match}

    # --- memos --------------------------------------------------------------------------------

    def put_memo(self, kind: str, key: str, value: Json) -> None:
        """Remember a small value, for instance a base's digest under its files' names and times."""
        if self.get_memo(kind, key) != value:
            content = {"key": key, "value": value}
            self._folder.write(_memo_name(kind, key), seal("memo", MEMO_VERSION, content))

    def get_memo(self, kind: str, key: str) -> Json:
        """Return a remembered value; None if there is none."""
        content = self._sealed(_memo_name(kind, key), "memo", MEMO_VERSION)
        return None if content is None or content["key"] != key else content["value"]

    # --- files --------------------------------------------------------------------------------

    def _table(self, name: str, table: str, *, rows: bool = True) -> pa.Table | None:
        data = self._folder.read(name)
        if data is None:
            return None
        try:
            return from_parquet(data, table, self._folder.place(name), rows=rows)
        except CorruptError as error:
            self._set_aside(name, error.message)
            return None

    def _sealed(self, name: str, kind: str, version: int) -> Json:
        data = self._folder.read(name)
        if data is None:
            return None
        try:
            return unseal(data, kind, version, self._folder.place(name))
        except CorruptError as error:
            self._set_aside(name, error.message)
            return None

    def _set_aside(self, name: str, why: str) -> None:
        logger.warning(
            "%s is damaged (%s): treated as absent, computed again", self._folder.place(name), why
        )
        try:
            self._folder.set_aside(name)
        except SetupError as error:  # a reader without write access: absent is all it needs
            logger.warning("and it cannot be renamed: %s", error)


def _content_digest(request_set: RequestSet) -> str:
    return request_set_digest(
        task=request_set.task,
        version=request_set.version,
        output_type=request_set.output_type,
        requests=request_set.requests,
        documents=request_set.documents,
        tokenizer_digest=request_set.tokenizer_digest,
    )


def _odd_indices(indices: list[int], expected: int) -> str:
    twice = sorted({i for i, j in pairwise(indices) if i == j})
    if twice:
        return f"requests {twice[:10]} are answered twice"
    missing = sorted(set(range(expected)) - set(indices))
    unknown = sorted(set(indices) - set(range(expected)))
    return f"requests {missing[:10]} have no answer, {unknown[:10]} are not in the request set"


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key: letters, digits, _ and - are allowed, at most 128")
    return key


def _requests_name(key: str) -> str:
    return f"requests/{_checked(key)}.parquet"


def _frozen_name(key: str, partial: bool) -> str:
    return f"frozen/{_checked(key)}{'.partial' if partial else ''}.json"


def _answers_name(cell: str, index: int, count: int) -> str:
    return f"answers/{_checked(cell)[:2]}/{cell}.{index}-of-{count}.parquet"


def _scores_name(key: str) -> str:
    return f"scores/{_checked(key)[:2]}/{key}.parquet"


def _memo_name(kind: str, key: str) -> str:
    return f"memo/{_checked(kind)}/{digest('memo', MEMO_VERSION, key)}.json"
