"""Why a reading is not there: a sentence for the reader, and a short flag for the record."""

from __future__ import annotations


class Unavailable(Exception):
    """A quantity cannot be read. `flag` is a word for records and filters, such as `mig` or `counter_reset`."""

    def __init__(self, reason: str, flag: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.flag = reason, flag
