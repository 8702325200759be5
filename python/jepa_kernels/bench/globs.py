"""Globs as options and suites give them: any of them chooses a name, and any that begins with `!` leaves it out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

LEAVE_OUT = "!"


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the globs choose a name; globs that only leave out choose everything else."""
    globs = list(patterns)
    wanted = choosing(globs)
    left_out = any(fnmatchcase(name, g.removeprefix(LEAVE_OUT)) for g in globs if g.startswith(LEAVE_OUT))
    return not left_out and (not wanted or any(fnmatchcase(name, g) for g in wanted))


def choosing(patterns: Iterable[str]) -> list[str]:
    """The globs that choose."""
    return [g for g in patterns if not g.startswith(LEAVE_OUT)]


def unmatched(patterns: Iterable[str], names: Sequence[str]) -> str | None:
    """The first glob that chooses none of the names, or None. One that leaves out may find nothing to leave out."""
    return next((g for g in choosing(patterns) if not any(fnmatchcase(name, g) for name in names)), None)
