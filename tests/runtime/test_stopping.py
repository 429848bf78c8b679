import os
import signal
import threading

import pytest

from raypeft.errors import Interrupted
from raypeft.runtime.stopping import interruptible, stopping


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


def end_by(number: signal.Signals) -> None:
    with interruptible():
        try:
            signal.raise_signal(number)
        except Exception as error:  # noqa: BLE001 - as where one of many tasks is tried
            pytest.fail(f"taken for a failure of what was tried: {error!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_no_loop_ends_at_once_and_not_as_a_failure(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        end_by(number)
    assert caught.value.signal_name == number.name
    assert signal.getsignal(number) is before


def test_a_loop_inside_takes_signals_over_and_gives_them_back() -> None:
    with interruptible():
        outer = signal.getsignal(signal.SIGTERM)
        with stopping() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is outer


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # with threads of other tests
def test_a_fork_is_ended_by_a_signal_as_ever() -> None:
    with interruptible():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
