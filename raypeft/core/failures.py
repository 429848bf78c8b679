"""Why something failed, as values: the kinds are the `reason` column of the tables."""

from dataclasses import dataclass
from enum import StrEnum


class FailureKind(StrEnum):
    """Why a cell, an adapter or a unit failed: the `reason` column of the tables."""

    SPEC = "spec"
    """What the sweep names does not exist or cannot be read (found before anything was loaded)."""
    DOES_NOT_FIT = "does_not_fit"
    """The adapter's tensors are not those that its config and this base imply."""
    NOT_APPLIED = "not_applied"
    """Nothing of the adapter was attached to the base."""
    NO_EFFECT = "no_effect"
    """The adapter is attached and changes nothing: its weights are zero, or come to nothing."""
    NOT_FINITE = "not_finite"
    """NaN or infinity in the adapter's weights or in an answer."""
    UNREADABLE = "unreadable"
    """A file is missing, truncated or corrupt."""
    UNSAFE = "unsafe"
    """Pickled weights, remote code or generated code that the sweep file does not allow."""
    UNSUPPORTED = "unsupported"
    """No engine can do this."""
    TASK_FAILED = "task_failed"
    """lm-eval could not build or score the task."""
    LOAD_FAILED = "load_failed"
    """The base could not be loaded."""
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    SLOT_LOST = "slot_lost"
    """The actor or its node died."""
    CRASHED = "crashed"
    """Anything else that was raised while answering."""
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something failed, as a value.

    Attributes:
        kind: The reason's name.
        message: What happened, for a person: place, value, what is allowed, what to do.
        retryable: Whether another attempt could end differently.
        detail: A traceback or log tail; may be empty.
    """

    kind: FailureKind
    message: str
    retryable: bool = False
    detail: str = ""
