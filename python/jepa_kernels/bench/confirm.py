"""`bench compare --confirm`: regressed cases are measured again, and only what regresses twice is a regression."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import compare_text, session
from .compare import INCONCLUSIVE, REGRESSED, Change, Comparison
from .store import read_environment
from .suite import from_record


def confirm(found: Comparison, base: Path, head: Path, **options: Any) -> Comparison:
    """Run the regressed cases of `head` again, into a folder beside it, and hold them against the base too."""
    suspects = found.verdicts(REGRESSED)
    if not suspects:
        return found
    before = read_environment(head)
    suite = replace(
        from_record(before["suite"], head), cases=tuple(sorted({c.case_id for c in suspects})), profile=False
    )
    given = before["input"].get("path")
    run = session.RunOptions(
        suite=suite, output=head.parent / f"{head.name}-confirm", device=before["device"],
        input=Path(given) if given else None,
    )  # fmt: skip
    with redirect_stdout(sys.stderr):  # stdout is the comparison's
        session.run(run)
    again = max(run.output.iterdir(), key=lambda folder: folder.stat().st_mtime)
    return merge(found, compare_text.load(base, again, **options))


def merge(first: Comparison, second: Comparison) -> Comparison:
    """The first comparison, in which a regression that the second does not show is undecided."""
    twice = {_key(c) for c in second.verdicts(REGRESSED)}

    def judged(change: Change) -> Change:
        if change.verdict != REGRESSED or change.control or _key(change) in twice:
            return change
        return replace(change, verdict=INCONCLUSIVE, note="not confirmed by a second measurement")

    return replace(first, changes=[judged(c) for c in first.changes])


def _key(change: Change) -> tuple[str, str, str]:
    return change.case_id, change.provider, change.measure
