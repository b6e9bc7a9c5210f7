"""Ctrl-C and SIGTERM as a request to come to an end, instead of an exception somewhere in a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # the keyboard's, and those of schedulers and of torchrun


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Within the block, the first Ctrl-C or SIGTERM sets the event and nothing else; a second Ctrl-C acts as usual.

    A second SIGTERM does nothing: schedulers send it to torchrun and to its processes, to which torchrun passes it on.

    Outside the main thread, where Python delivers no signals, the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request(number: int, _frame: FrameType | None) -> None:
        stop.set()
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])

    for number in SIGNALS:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        put_back()


__all__ = ["stop_on_interrupt"]
