"""What a pool does when a slot asks for an adapter: load it where the driver is.

Whatever goes wrong is a value: an adapter that cannot be brought is its subjects' failure, and
the run goes on.
"""

from collections.abc import Callable

from raypeft.core.records import Failure, FailureKind
from raypeft.engines.travel import AdapterBytes
from raypeft.runtime.failures import failure_from


def brought(load: Callable[[], AdapterBytes] | None, key: str) -> AdapterBytes | Failure:
    """Return an adapter's files, or why they cannot be brought.

    Args:
        load: Reads them; None if nobody has offered them, or does no longer.
        key: What they are.
    """
    if load is None:
        return Failure(
            FailureKind.UNREADABLE,
            f"the node of the slot lacks adapter content {key}, and it is not offered (any more)",
            retryable=True,
        )
    try:
        return load()
    except Exception as error:  # noqa: BLE001 - a failure becomes a value here
        return failure_from(error)
