"""Errors of the static report that a user can mend: the command prints them as one line and exits with their code."""

from __future__ import annotations


class StaticError(ValueError):
    """An operator, architecture or filter that the report cannot be made for; the message says what to write instead."""

    exit_code = 2


class CompileError(StaticError):
    """A kernel does not compile for an architecture."""

    exit_code = 4


class ToolMissingError(StaticError):
    """Triton or a tool of the CUDA toolkit is not here; the message says what brings it."""

    exit_code = 5
