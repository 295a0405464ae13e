"""A process that nobody needs any more ends itself."""

import threading
import time
from collections.abc import Callable


class Lease:
    """Calls ``end`` once, from a thread of its own, when :meth:`renew` has not been called for ``seconds``."""

    def __init__(self, seconds: float, end: Callable[[], None]) -> None:
        self._seconds = seconds
        self._end = end
        self._renewed = time.monotonic()
        threading.Thread(target=self._run, name="lease", daemon=True).start()

    def renew(self) -> None:
        self._renewed = time.monotonic()

    def _run(self) -> None:
        while (left_s := self._renewed + self._seconds - time.monotonic()) > 0:
            time.sleep(left_s)
        self._end()
