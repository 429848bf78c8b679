import signal

import pytest

from raypeft.core.records import Failure
from raypeft.errors import Interrupted
from raypeft.runtime.calls import Call, call_all
from raypeft.runtime.local import LocalPool


def double(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return 2 * number


def test_every_call_has_a_result_or_a_reason() -> None:
    calls: dict[str, Call] = {str(n): (double, (n,)) for n in (1, -1, 3)}
    results = call_all(LocalPool(), calls)
    assert (results["1"], results["3"]) == (2, 6)
    assert isinstance(results["-1"], Failure)
    assert results["-1"].message == "ValueError: -1 is below 0"


def test_no_calls_are_no_results() -> None:
    assert call_all(LocalPool(), {}) == {}


def test_results_are_told_as_they_come_so_an_interruption_loses_none() -> None:
    told: dict[str, object] = {}

    def on_result(call: str, result: object) -> None:
        told[call] = result
        if len(told) == 2:
            signal.raise_signal(signal.SIGTERM)

    calls: dict[str, Call] = {str(n): (double, (n,)) for n in range(10)}
    with pytest.raises(Interrupted):
        call_all(LocalPool(), calls, on_result=on_result)
    assert told == {"0": 0, "1": 2}


def test_no_more_calls_than_allowed_are_under_way() -> None:
    class Counting(LocalPool):
        under_way = 0
        most = 0
        calls_at_once = 3

        def submit_call(self, call: str, function: object, *args: object) -> None:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            super().submit_call(call, double, *args)

    pool = Counting()

    def on_result(call: str, result: object) -> None:
        pool.under_way -= 1

    call_all(pool, {str(n): (double, (n,)) for n in range(10)}, on_result=on_result)
    assert pool.most == 3
