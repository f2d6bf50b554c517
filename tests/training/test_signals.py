import signal
import threading

import pytest

from sft_jax.training.signals import STOPPING, stop_requests


@pytest.fixture(autouse=True)
def usual_handlers():
    """Those of a process in the foreground, whatever started the tests."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number in STOPPING:
        python = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if python else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_a_request_and_handlers_come_back(number):
    before = [signal.getsignal(one) for one in STOPPING]
    with stop_requests() as requested:
        assert requested() is None
        signal.raise_signal(number)
        assert requested() is number
        signal.raise_signal(signal.SIGTERM)  # schedulers send it more than once
        assert requested() is number
    assert [signal.getsignal(one) for one in STOPPING] == before


@pytest.mark.parametrize("first", STOPPING)
def test_ctrl_c_after_any_request_interrupts_a_library_and_ends_a_command(first):
    with stop_requests():
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: None)  # a command has a handler of its own
    with stop_requests():
        signal.raise_signal(first)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_what_was_ignored_stays_ignored():
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    with stop_requests() as requested:
        for number in STOPPING:
            signal.raise_signal(number)
        assert requested() is None
    # And where only Ctrl-C was, a request by another signal does not bring it back.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with stop_requests() as requested:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert requested() is signal.SIGTERM


def test_another_thread_leaves_the_handlers_alone():
    before, seen = [signal.getsignal(number) for number in STOPPING], []

    def look():
        with stop_requests() as requested:
            seen.append(([signal.getsignal(number) for number in STOPPING], requested()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
