"""End a command on a signal: it removes what is half-written, then exits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_SIGNAL = 128  # and the signal's number, as shells count
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """A signal asked the command to end; handlers on the way out remove what is half-written."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raise `Ended` where SIGTERM or SIGHUP would end the process at once.

    Only the first is raised, so that a second one cannot interrupt the cleaning up. A signal that
    the parent made this process ignore, as nohup does, stays ignored.
    """

    def end(number: int, frame: object) -> None:
        for other in caught:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    is_main = threading.current_thread() is threading.main_thread()  # others cannot catch signals
    caught = [
        number
        for number in ENDING_SIGNALS
        if is_main and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in caught:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
