"""Ctrl-C: the first one ends a run after its round, the second one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopFlag:
    """Turns true at the first Ctrl-C; the second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    @contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Handle SIGINT while inside; only the main thread may, elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(_number: int, _frame: object) -> None:
            if self():
                raise KeyboardInterrupt
            self.set()
            print("interrupted: finishing this round and saving; press Ctrl-C again to abort", flush=True)

        previous = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
