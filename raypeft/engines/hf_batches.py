"""Which requests go through the model together: lm-eval's own batches, cut into shards.

Decides: the batches that lm-eval's `HFLM` would form from a whole request set in one call, and
which whole batches (and so which requests) belong to a shard. Leaves to others: encoding text and
calling the model.

A number from a padded batch depends on what else is in the batch. So batches are formed from the
whole request set, with lm-eval's own `Collator` and the same sorting and grouping, and a shard
is a range of whole batches. A range of sorted batches, sorted again by HFLM, is the same range:
each answer comes from the same batch for every number of shards.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from lm_eval.models.utils import Collator, normalize_gen_kwargs

from raypeft.core.records import Json

TokenArray = npt.NDArray[np.int32]
"""Token numbers, four bytes each: a list of Python ints takes nine times that."""

Batch = tuple[int, ...]
"""Positions of the requests in one batch, ascending."""


class Pair(NamedTuple):
    """A log-likelihood request, encoded.

    Attributes:
        context: Tokens given.
        continuation: Tokens to be scored.
    """

    context: TokenArray
    continuation: TokenArray

    def as_lm_eval(self) -> tuple[None, list[int], list[int]]:
        """Return it as `HFLM._loglikelihood_tokens` takes it (the text is for caches only)."""
        return None, self.context.tolist(), self.continuation.tolist()


class GenerationBatch(NamedTuple):
    """Requests that are generated together.

    Attributes:
        number: Its place among the batches of the whole request set.
        positions: The requests.
        is_sampled: Whether their settings ask for sampling.
    """

    number: int
    positions: Batch
    is_sampled: bool


def shard_range(num_items: int, index: int, count: int) -> range:
    """Return the items of one shard; the shards of a `count` partition the items in order."""
    return range(index * num_items // count, (index + 1) * num_items // count)


def pair_batches(
    pairs: Sequence[tuple[list[int], list[int]]], *, batch_size: int, by_context: bool
) -> tuple[Batch, ...]:
    """Return the batches that `HFLM._loglikelihood_tokens` forms from (context, continuation).

    Args:
        pairs: All requests of the request set, encoded.
        batch_size: Rows per forward pass.
        by_context: Whether HFLM reads several one-token continuations from one row, as it does
            for causal models.
    """

    def key(item: tuple[int, list[int], list[int]]) -> list[int]:
        return item[-2] + item[-1][:-1]

    def order(item: tuple[int, list[int], list[int]]) -> tuple[int, tuple[int, ...]]:
        tokens = item[1] + item[2]
        return -len(tokens), tuple(tokens)

    items = [(position, *pair) for position, pair in enumerate(pairs)]
    group_by = "contexts" if by_context else None
    collator = Collator(items, sort_fn=order, group_by=group_by, group_fn=key)
    chunks = [[item[0] for item in chunk] for chunk in collator.get_batched(n=batch_size)]
    if not by_context:
        return tuple(tuple(sorted(chunk)) for chunk in chunks)
    rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for item in items:
        rows[tuple(key(item))].append(item[0])
    shares_row = {position: members for members in rows.values() for position in members}
    return tuple(
        tuple(sorted(member for position in chunk for member in shares_row[position]))
        for chunk in chunks
    )


def generation_batches(
    requests: Sequence[tuple[str, Mapping[str, Json]]],
    num_tokens: Sequence[int],
    *,
    batch_size: int,
) -> tuple[GenerationBatch, ...]:
    """Return the batches that `HFLM.generate_until` forms.

    Args:
        requests: All (context, generation settings) of the request set.
        num_tokens: The contexts' lengths, as HFLM encodes them for sorting.
        batch_size: Rows per call of `generate`.
    """
    items = [(context, settings, at) for at, (context, settings) in enumerate(requests)]
    collator = Collator(
        items,
        sort_fn=lambda item: (-num_tokens[item[2]], item[0]),
        group_by="gen_kwargs",
        group_fn=lambda item: item[1],
    )
    return tuple(
        GenerationBatch(
            number=number,
            positions=tuple(sorted(item[2] for item in chunk)),
            is_sampled=is_sampled(chunk[0][1]),
        )
        for number, chunk in enumerate(collator.get_batched(n=batch_size))
    )


def is_sampled(settings: Mapping[str, Json]) -> bool:
    """Return whether generation settings ask for sampling, as lm-eval reads them."""
    return bool(normalize_gen_kwargs(dict(settings))["do_sample"])


def batch_seed(seed: int, request_set: str, number: int) -> int:
    """Return the seed of a sampled batch: nothing that was answered before can change it."""
    text = f"{seed}/{request_set}/{number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class RollingPlan:
    """The windows of all rolling requests, in HFLM's order.

    HFLM puts the windows of all requests in one row and cuts it into batches, so a batch may hold
    windows of several requests. A shard is a range of batches; a request belongs to the shard in
    which its first window stands, and that shard also runs the batches its other windows reach
    into. Few batches at the edges are so computed twice, and each is computed whole.

    Attributes:
        windows: All windows.
        starts: For each request, the number of its first window; one more entry for the end.
        batch_size: Windows in a batch.
    """

    windows: tuple[Pair, ...]
    starts: tuple[int, ...]
    batch_size: int

    @classmethod
    def of(cls, windows: Sequence[Sequence[Pair]], batch_size: int) -> "RollingPlan":
        """Make a plan from the windows of each request."""
        starts = [0]
        for own in windows:
            starts.append(starts[-1] + len(own))
        return cls(tuple(one for own in windows for one in own), tuple(starts), batch_size)

    def positions(self, index: int, count: int) -> range:
        """Return the requests of a shard."""
        num_batches = max(1, -(-len(self.windows) // self.batch_size))
        batches = shard_range(num_batches, index, count)
        # A text without tokens has no window of its own; one at the end stands in the last batch.
        owners = [min(start // self.batch_size, num_batches - 1) for start in self.starts[:-1]]
        first, last = np.searchsorted(owners, [batches.start, batches.stop])
        return range(int(first), int(last))

    def batches(self, positions: range) -> list[range]:
        """Return the batches, as ranges of windows, that hold any window of these requests."""
        if not positions:
            return []
        first, last = self.starts[positions.start], self.starts[positions.stop]
        if first == last:
            return []
        size, total = self.batch_size, len(self.windows)
        return [
            range(start, min(start + size, total))
            for start in range(first // size * size, last, size)
        ]

    def sums(self, positions: range, logprobs: Mapping[int, float]) -> list[float]:
        """Return each request's log-likelihood: its windows added up in HFLM's order."""
        return [
            float(sum(logprobs[at] for at in range(self.starts[pos], self.starts[pos + 1])))
            for pos in positions
        ]


def to_array(tokens: Any) -> TokenArray:
    """Return token numbers as a compact array."""
    return np.asarray(tokens, dtype=np.int32)
