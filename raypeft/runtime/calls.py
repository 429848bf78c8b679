"""A batch of calls, run to its end: the stage before there are slots."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from raypeft.core.records import Failure
from raypeft.errors import Interrupted
from raypeft.runtime.ports import CallDone, CallFailed, Pool
from raypeft.runtime.stopping import stopping

Call: TypeAlias = tuple[Callable[..., object], tuple[object, ...]]
"""A module-level function and its arguments."""

WAIT_SECONDS = 1.0
"""How soon a signal is noticed."""


def call_all(
    pool: Pool,
    calls: Mapping[str, Call],
    *,
    on_result: Callable[[str, object | Failure], None] = lambda call, result: None,
) -> dict[str, object | Failure]:
    """Run calls and return for each its result, or why there is none.

    Args:
        pool: Runs them.
        calls: By id.
        on_result: Told of each result as it comes; what it stores survives an interruption.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM.
    """
    results: dict[str, object | Failure] = {}
    waiting = iter(calls.items())
    running: set[str] = set()

    def submit_next() -> None:
        for call, (function, args) in waiting:
            running.add(call)
            pool.submit_call(call, function, *args)
            break

    with stopping() as stop:
        for _ in range(pool.calls_at_once):
            submit_next()
        while running:
            for event in pool.wait(WAIT_SECONDS):
                if not isinstance(event, CallDone | CallFailed) or event.call not in running:
                    continue
                result = event.result if isinstance(event, CallDone) else event.failure
                running.remove(event.call)
                results[event.call] = result
                on_result(event.call, result)
                submit_next()
            if stop.signal_name:
                raise Interrupted(stop.signal_name)
    return results
