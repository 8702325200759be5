"""Errors of tuning that a user can mend: the command prints them as one line and exits with their code."""

from __future__ import annotations


class TuneError(ValueError):
    """An operator, architecture or file that tuning cannot take; the message says what to write instead."""

    exit_code = 2


class NoGPUError(TuneError):
    """There is no GPU to time on."""

    exit_code = 5
