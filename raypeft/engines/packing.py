"""Requests → packed rows that compute what requests share once. Pure: token numbers in, plan out.

Decides: which requests share a row, which contexts share a prefix, which rows go through the
model together, and where in a row each request's tokens are read. Leaves to others: the masks and
the model call (`hf_shared`), and whether a model may be asked in this way at all.

A packed row is a context (the *trunk*) followed by the continuations that stand after it (the
*branches*). Every branch sees the trunk and itself, and its positions go on where the trunk
ends, so each token is computed as in a row of its own: the tree attention of speculative decoding
(Miao et al., SpecInfer, arXiv 2305.09781), used here for the choices of a document.

- Continuations of one token need no branch: they are read where the trunk ends, so the letters of
  a document are one row. The last token of a continuation is never computed, only read.
- Equal requests are one request; equal branches one branch.
- Where many contexts begin alike (shots that are the same for all documents), the common *prefix*
  is computed once and left out of the rows.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raypeft.engines.hf_batches import Pair, TokenArray

MIN_PREFIX_TOKENS = 32
"""A shorter prefix saves less than its handling costs."""

MIN_PREFIX_SAVING = 0.2
"""Least share of all context tokens that a prefix must save. It is put in front of every row
again as keys and values, which costs memory traffic."""


MOST_BRANCH_TOKENS = 1024
"""A row's mask grows with its square; contexts with more to follow get another row."""


class Read(NamedTuple):
    """Where one distinct request is read in its row.

    Attributes:
        positions: The requests that ask this: their positions among the log-likelihood requests.
        places: Index in the row of the token before each continuation token.
        targets: The continuation's tokens.
    """

    positions: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One packed row.

    Attributes:
        tokens: Trunk, then branches one after another; the prefix is not among them.
        depths: Position of each token in its own text, the prefix counted.
        branches: 0 for the trunk, then 1, 2, … for each branch.
        has_prefix: Whether the set's prefix stands in front.
        reads: What is read in it.
        places: The distinct places of all reads: logits are computed there and nowhere else.
        picks: For each token that is read, one read after another, its index in `places`.
        targets: The tokens that are read, in the same order.
    """

    tokens: TokenArray
    depths: TokenArray
    branches: TokenArray
    has_prefix: bool
    reads: tuple[Read, ...]
    places: TokenArray
    picks: TokenArray
    targets: TokenArray

    @property
    def has_branches(self) -> bool:
        """Whether it holds more than its trunk."""
        return bool(self.branches[-1])

    @property
    def positions(self) -> list[int]:
        """The requests that it answers."""
        return [position for read in self.reads for position in read.positions]


class Packing(NamedTuple):
    """How much packed rows may hold; see `pack`.

    Attributes:
        max_length: Longest text in tokens.
        batch_tokens: Most tokens of a batch.
        batch_places: Most places of a batch at which logits are computed.
        batch_cached_tokens: Most tokens of a batch with the prefix counted once for each row, as
            its keys and values are laid in front of each.
    """

    max_length: int
    batch_tokens: int
    batch_places: int = sys.maxsize
    batch_cached_tokens: int = sys.maxsize


@dataclass(frozen=True, slots=True)
class Packed:
    """All rows of a request set's log-likelihood requests, in the order they are run.

    Attributes:
        prefix: Tokens that rows with a prefix leave out; may be empty.
        rows: Those with the prefix first, then those without branches; in each kind longest first.
        batches: Ranges of rows that go through the model together.
        left_out: Positions of requests that must not share (truncated by the model's length).
    """

    prefix: TokenArray
    rows: tuple[Row, ...]
    batches: tuple[range, ...]
    left_out: tuple[int, ...]

    def shard_rows(self, index: int, count: int) -> range:
        """Return the rows of a shard: about equal numbers of tokens, whatever the batches are."""
        ends = np.cumsum([len(row.tokens) for row in self.rows]) if self.rows else np.zeros(0)
        total = int(ends[-1]) if len(ends) else 0
        cuts = [
            int(np.searchsorted(ends, part * total / count, side="left")) if part else 0
            for part in (index, index + 1)
        ]
        last = len(self.rows) if index + 1 == count else cuts[1]
        return range(cuts[0], last)


def pack(pairs: Sequence[Pair], packing: Packing) -> Packed:
    """Pack requests into rows and rows into batches.

    Args:
        pairs: (context, continuation) of every request, as tokens; none of them empty.
        packing: How long a text may be, requests beyond it are left out; and how much a batch may
            hold, padding counted. What exceeds a batch by itself is a batch of its own.
    """
    fitting = [at for at, pair in enumerate(pairs) if _length(pair) <= packing.max_length]
    taken = set(fitting)
    left_out = tuple(at for at in range(len(pairs)) if at not in taken)
    groups = _by_context(pairs, fitting)
    contexts = [pairs[members[0]].context for members in groups]
    prefix_tokens, shares = common_prefix(contexts)
    prefix = contexts[shares[0]][:prefix_tokens] if shares else np.zeros(0, np.int32)
    sharing = set(shares)
    rows = [
        row
        for number, members in enumerate(groups)
        for row in _rows(pairs, members, prefix_tokens if number in sharing else 0, packing)
    ]
    rows.sort(key=lambda row: (_kind(row), -len(row.tokens), row.reads[0].positions))
    return Packed(prefix, tuple(rows), tuple(_batches(rows, prefix_tokens, packing)), left_out)


def common_prefix(contexts: Sequence[TokenArray]) -> tuple[int, tuple[int, ...]]:
    """Return a prefix that is worth computing once: its length and which contexts begin with it.

    Each of these keeps a token of its own behind it, since its end is where answers are read.
    (0, ()) if none is worth it.
    """
    if len(contexts) < 2:
        return 0, ()
    # The middle one in order begins as most do, if most begin alike.
    order = sorted(range(len(contexts)), key=lambda at: contexts[at].tolist())
    model = contexts[order[len(order) // 2]]
    shared = np.array([min(_common(model, other), len(other) - 1) for other in contexts])
    total = sum(len(context) for context in contexts)
    best, length = 0, 0
    for candidate in np.unique(shared[shared >= MIN_PREFIX_TOKENS]):
        saving = int(candidate) * (int((shared >= candidate).sum()) - 1)
        if saving > best:
            best, length = saving, int(candidate)
    if best < MIN_PREFIX_SAVING * total:
        return 0, ()
    return length, tuple(int(at) for at in np.flatnonzero(shared >= length))


def _kind(row: Row) -> tuple[bool, bool]:
    """Return what the rows of a batch have in common; prefixes first, plain causal rows next."""
    return (not row.has_prefix, not row.has_prefix and row.has_branches)


def _length(pair: Pair) -> int:
    # The last token is read and never put in.
    return len(pair.context) + len(pair.continuation) - 1


def _common(left: TokenArray, right: TokenArray) -> int:
    size = min(len(left), len(right))
    differs = np.flatnonzero(left[:size] != right[:size])
    return int(differs[0]) if len(differs) else size


def _by_context(pairs: Sequence[Pair], positions: Sequence[int]) -> list[list[int]]:
    groups: dict[bytes, list[int]] = {}
    for at in positions:
        groups.setdefault(pairs[at].context.tobytes(), []).append(at)
    return list(groups.values())


def _rows(
    pairs: Sequence[Pair], members: Sequence[int], prefix_tokens: int, packing: Packing
) -> list[Row]:
    """Return the rows of one context: one, unless its branches exceed what a row may hold."""
    trunk = pairs[members[0]].context[prefix_tokens:]
    # Not by what a batch may hold, which a device decides: shards are cut between rows, and those
    # of two slots must make a whole. Models with a table of positions take no longer row.
    most_tokens = min(len(trunk) + MOST_BRANCH_TOKENS, packing.max_length - prefix_tokens)
    asked: dict[tuple[int, ...], list[int]] = {}
    for at in members:
        asked.setdefault(tuple(pairs[at].continuation.tolist()), []).append(at)
    context = pairs[members[0]].context
    rows: list[Row] = []
    builder = _RowBuilder(trunk, len(context), prefix_tokens)
    for continuation, positions in asked.items():
        more = len(continuation) - 1
        is_full = builder.num_tokens + more > most_tokens
        # One place at the end of the trunk, and each token of a branch.
        is_full |= 1 + builder.num_tokens - len(trunk) + more > packing.batch_places
        if builder.reads and is_full:
            rows.append(builder.build())
            builder = _RowBuilder(trunk, len(context), prefix_tokens)
        builder.add(continuation, tuple(positions))
    return [*rows, builder.build()]


class _RowBuilder:
    def __init__(self, trunk: TokenArray, context_tokens: int, prefix_tokens: int) -> None:
        self._trunk = trunk
        self._context_tokens = context_tokens
        self._prefix_tokens = prefix_tokens
        self._branches: dict[tuple[int, ...], int] = {}
        self.num_tokens = len(trunk)
        self.reads: list[Read] = []

    def add(self, continuation: tuple[int, ...], positions: tuple[int, ...]) -> None:
        branch = continuation[:-1]
        if branch and branch not in self._branches:
            self._branches[branch] = self.num_tokens
            self.num_tokens += len(branch)
        start = self._branches.get(branch, 0)
        places = (len(self._trunk) - 1, *range(start, start + len(branch)))
        self.reads.append(Read(positions, places, continuation))

    def build(self) -> Row:
        trunk = len(self._trunk)
        tokens = np.concatenate([self._trunk, *map(np.asarray, self._branches)])
        depths = np.concatenate(
            [
                np.arange(self._prefix_tokens, self._context_tokens),
                *(
                    np.arange(self._context_tokens, self._context_tokens + len(branch))
                    for branch in self._branches
                ),
            ]
        )
        sizes = [trunk, *map(len, self._branches)]
        read = np.array([place for read in self.reads for place in read.places])
        places, picks = np.unique(read, return_inverse=True)
        targets = [target for read in self.reads for target in read.targets]
        return Row(
            tokens=tokens.astype(np.int32),
            depths=depths.astype(np.int32),
            branches=np.repeat(np.arange(len(sizes)), sizes).astype(np.int32),
            has_prefix=self._prefix_tokens > 0,
            reads=tuple(self.reads),
            places=places.astype(np.int32),
            picks=picks.astype(np.int32),
            targets=np.array(targets, dtype=np.int32),
        )


def _batches(rows: Sequence[Row], prefix_tokens: int, packing: Packing) -> list[range]:
    """Cut rows, sorted, into batches of one kind each, none of which exceeds what it may hold."""
    batches: list[range] = []
    start = places = 0
    for at, row in enumerate(rows):
        first = rows[start]
        length, num_rows = len(first.tokens), at - start + 1
        cached = num_rows * (length + (prefix_tokens if first.has_prefix else 0))
        is_full = (
            num_rows * length > packing.batch_tokens
            or cached > packing.batch_cached_tokens
            or places + len(row.places) > packing.batch_places
        )
        if at > start and (is_full or _kind(row) != _kind(first)):
            batches.append(range(start, at))
            start, places = at, 0
        places += len(row.places)
    if rows:
        batches.append(range(start, len(rows)))
    return batches
