"""What raypeft raises on purpose, grouped by who can act on it.

Every class hands all its constructor arguments to `Exception.args`, so that it survives pickling
between processes (Ray rebuilds an exception as `cls(*args)`); a test pickles each one.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with what a user gave us.

    Attributes:
        place: Where it stands, for instance `bases[0].adapters[2].path`.
        message: What is wrong: the value and what is allowed.
        remedy: What to do about it; empty if the message says it.
    """

    place: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text}; {self.remedy}" if self.remedy else text


class RaypeftError(Exception):
    """Base class of everything raypeft raises on purpose."""


class SpecError(RaypeftError):
    """The sweep file, or what it names, is wrong: its author can act. Exit code 2.

    Args:
        problems: Every problem found, never only the first.
        source: The file that holds them, or what stands for it.
    """

    def __init__(self, problems: tuple[Problem, ...], source: str = "") -> None:
        super().__init__(problems, source)
        self.problems = problems
        self.source = source

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{count} problem{'' if count == 1 else 's'}"
        head += f" in {self.source}:" if self.source else ":"
        return "\n".join([head, *(f"  - {problem}" for problem in self.problems)])


class SetupError(RaypeftError):
    """The surroundings are wrong: a folder that cannot be written, a cluster out of reach.

    Args:
        message: What is wrong, with the place and the value.
        remedy: What to do about it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class CellError(RaypeftError):
    """One cell cannot be finished; the rest of the sweep goes on.

    Args:
        kind: A `raypeft.core.records.FailureKind` value, the reason's name in the tables.
        message: What happened, for a person.
        retryable: Whether another attempt could end differently.
    """

    def __init__(self, kind: str, message: str, retryable: bool = False) -> None:
        super().__init__(kind, message, retryable)
        self.kind = kind
        self.message = message
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class EngineFatalError(RaypeftError):
    """The engine is broken: its slot must be stopped and replaced before anything else runs there.

    Args:
        message: What happened.
        kind: A `raypeft.core.records.FailureKind` value, as for a `CellError`.
    """

    def __init__(self, message: str, kind: str = "crashed") -> None:
        super().__init__(message, kind)
        self.message = message
        self.kind = kind

    def __str__(self) -> str:
        return self.message


class IncomparableError(RaypeftError):
    """Two results must not be compared.

    Args:
        field: The first identity or hardware field that differs.
        left: Its value on the left side.
        right: Its value on the right side.
        context: What was to be compared.
    """

    def __init__(self, field: str, left: str, right: str, context: str = "") -> None:
        super().__init__(field, left, right, context)
        self.field = field
        self.left = left
        self.right = right
        self.context = context

    def __str__(self) -> str:
        head = f"{self.context}: " if self.context else ""
        return f"{head}not comparable, {self.field} differs: {self.left!r} against {self.right!r}"


class StoreError(RaypeftError):
    """A stored file is not what it should be (an unknown version, a wrong schema, missing rows).

    Args:
        place: The file.
        message: What is wrong with it.
        remedy: What to do about it.
    """

    def __init__(self, place: str, message: str, remedy: str = "") -> None:
        super().__init__(place, message, remedy)
        self.place = place
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}"
        return f"{text}; {self.remedy}" if self.remedy else text


class Interrupted(RaypeftError):  # noqa: N818 - named like KeyboardInterrupt, which it stands for
    """The run was asked to stop (Ctrl-C, SIGTERM); everything finished is in the store.

    Args:
        signal_name: The signal, for instance `SIGTERM`.
    """

    def __init__(self, signal_name: str = "SIGINT") -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name
