"""The report as Markdown, for a pull request or an issue: the same numbers as the HTML, without plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from . import readme, summary
from .store import Record


def as_markdown(
    records: Sequence[Record], environment: dict[str, Any], run_id: str, profiles: Sequence[Mapping[str, Any]]
) -> str:
    """Conditions, whole steps, results of every case, and what the profiles advise."""
    lines = [f"# jepa-kernels benchmark {run_id}", "", readme.conditions(environment), ""]
    note = summary.energy_note(records)
    if note:
        lines += [f"Energy is missing: {note}.", ""]
    lines += _steps(records)
    headers = summary.HEADERS[:-1] if note else summary.HEADERS
    for case_id, group in groupby(summary.rows(records), key=lambda row: row.case_id):
        lines += [f"## {case_id}", ""]
        rows = list(group)
        shown = [row for row in rows if row.status not in summary.ABSENT]
        if shown:
            lines += table((*headers, "note"), [[*row.cells[: len(headers)], row.note] for row in shown])
        absent = [f"{row.provider} ({row.note})" for row in rows if row.status in summary.ABSENT]
        if absent:
            lines += [f"Not run: {'; '.join(absent)}.", ""]
    for found in profiles:
        lines += [f"What to change in {found['case_id']}, {found['provider']}:", ""]
        lines += [*(f"- {line}" for line in found["advice"]), ""]
    return "\n".join(lines)


def _steps(records: Sequence[Record]) -> Iterator[str]:
    whole = [r for r in records if r["operator"] in ("train_step", "objectives", "model") and r["stats"] is not None]
    if whole:
        yield from ["## Whole steps", ""]
        yield from table(("case", *summary.STEP_HEADERS), [[r["case_id"], *summary.step_row(r)] for r in whole])


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with a blank line after it; a bar in a cell does not end it."""
    body = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers), *body, ""]
