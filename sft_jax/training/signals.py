"""Signals that ask a training to stop: SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closed terminal)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def stop_requests() -> Iterator[Callable[[], signal.Signals | None]]:
    """Records the signals in `STOPPING` instead of ending the process; yields the first received.

    A later Ctrl-C ends the process at once. Signals that were ignored (`nohup`) stay ignored.
    Outside the main thread, which alone can handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in STOPPING}
    # The system's default action also ends a process that hangs in compiled code. If Python's
    # handler is installed, as in a notebook, it is restored: that process must survive.
    python = before[signal.SIGINT] is signal.default_int_handler
    second = signal.default_int_handler if python else signal.SIG_DFL

    def receive(number, _):
        received.append(signal.Signals(number))
        if before[signal.SIGINT] is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, second)

    handled = [number for number in STOPPING if before[number] is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number in handled:
            signal.signal(number, before[number])
