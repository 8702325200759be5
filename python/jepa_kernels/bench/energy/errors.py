"""Why a reading is not there: a sentence for the reader, what mends it, and a short flag for the record."""

from __future__ import annotations


class Unavailable(Exception):
    """A quantity cannot be read: `what` is wrong, `fix` mends it, `reason` says both.

    `flag` is a word for records and filters, such as `mig` or `counter_reset`.
    """

    def __init__(self, what: str, flag: str | None = None, fix: str | None = None) -> None:
        self.what, self.flag, self.fix = what, flag, fix
        self.reason = what if fix is None else f"{what}: {fix}"
        super().__init__(self.reason)
