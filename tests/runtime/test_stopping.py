import signal
import threading

import pytest

from raypeft.errors import Interrupted
from raypeft.runtime.stopping import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_an_end(number: signal.Signals) -> None:
    with stopping() as stop:
        assert stop.signal_name == ""
        signal.raise_signal(number)
        assert stop.signal_name == number.name
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(number)
    assert caught.value.signal_name == number.name


def test_handlers_are_put_back_as_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopping():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_leaves_signals_alone() -> None:
    found: list[object] = []

    def look() -> None:
        with stopping():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
