"""The Engine protocol: a loaded base that answers requests for its subjects.

The promises below are checked for every implementation by `tests/contract/engine_contract.py`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from raypeft.core.records import Hardware, Shard, Subject, SubjectAnswers


class Engine(Protocol):
    """A loaded base.

    Promises:
        - `answer` returns one `SubjectAnswers` for each subject, in the order given.
        - The shards of a request set partition it: over all `index` of a `count`, each request is
          answered exactly once; and an answer is the same bit for bit for every `count`.
        - A subject's answers do not depend on which subjects were answered before or beside it.
        - What is wrong with one subject (an adapter that does not fit, is not finite, changes
          nothing) is that subject's `failure`; the others are answered.
        - Anything raised by `answer` is a failure of the whole unit. `EngineFatalError` says that
          the engine must not be used again; after any other exception it is proven clean.
    """

    def answer(self, shard: Shard, subjects: Sequence[Subject]) -> list[SubjectAnswers]:
        """Answer the requests of a shard for each subject."""
        ...

    def hardware(self) -> Hardware:
        """Return what this engine runs on, read back and not as asked for."""
        ...

    def close(self) -> None:
        """Give memory and processes back; calling it twice is harmless."""
        ...


@runtime_checkable
class Learning(Protocol):
    """An engine that learns how much its device takes at once, by running out of memory."""

    @property
    def row_limits(self) -> dict[int, int]:
        """Most tokens at once, by the length of the prefix before them; what is put in counts."""
        ...
