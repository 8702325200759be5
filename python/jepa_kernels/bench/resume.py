"""Going on with an interrupted run: what of it stands, what is measured again, and whether this is the same machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cases import Case
from .errors import BenchInputError
from .store import Record, read_results

UNFINISHED = ("skipped", "interrupted")
# Parts of the environment that must be as they were: the records of both parts stand in one table.
SAME = ("device", "hardware.cpu.name", "hardware.gpus", "system.threads", "versions", "commit", "input.sha256")


def split(
    folder: Path, cases: Sequence[Case], expected: dict[str, set[str]], *, finished: bool
) -> tuple[list[Record], list[Record]]:
    """Records to keep and to drop. A case stands when each of its providers has a final record, else it is run again.

    Rounds pair the providers of a case, so a case that was cut is measured again as a whole.
    Raises `BenchInputError` for a run that is complete or holds a case that this version does not know.
    """
    records = read_results(folder)
    unknown = sorted({r["case_id"] for r in records} - {case.id for case in cases})
    if unknown:
        raise BenchInputError(f"{folder} holds cases that are unknown here: {', '.join(unknown)}; start a new run")
    by_case: dict[str, dict[str, Record]] = {}
    for record in records:
        by_case.setdefault(record["case_id"], {})[record["provider"]] = record
    done = {
        case_id
        for case_id, found in by_case.items()
        if found.keys() == expected[case_id] and not any(r["status"] in UNFINISHED for r in found.values())
    }
    if finished and done == {case.id for case in cases}:
        raise BenchInputError(f"{folder} is complete: nothing to resume")
    kept = [r for case_id, found in by_case.items() if case_id in done for r in found.values()]
    dropped = [r for r in records if r["case_id"] not in done]
    return kept, dropped


def check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `BenchInputError` naming what changed since the run began."""
    changed = [f"{name}: {old} then, {new} now" for name, old, new in differences(before, now, SAME)]
    if changed:
        raise BenchInputError(f"the run cannot be resumed here, start a new one; changed: {'; '.join(changed)}")


def differences(before: dict[str, Any], now: dict[str, Any], names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """The named entries of two environments that differ; names are dotted paths."""
    pairs = ((name, _entry(before, name), _entry(now, name)) for name in names)
    return [(name, old, new) for name, old, new in pairs if old != new]


def _entry(environment: Any, name: str) -> Any:
    for key in name.split("."):
        environment = environment.get(key) if isinstance(environment, dict) else None
    return environment


def in_suite_order(records: Sequence[Record], cases: Sequence[Case]) -> list[Record]:
    """Records as an uninterrupted run would have them."""
    place = {case.id: index for index, case in enumerate(cases)}
    return sorted(records, key=lambda record: place[record["case_id"]])
