"""Progress and the final table on the terminal: `rich` on a TTY, plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from . import summary
from .errors import require
from .store import Record

STYLES = {"ok": "green", "inconclusive": "yellow", "interrupted": "yellow", "failed": "bold red", "oom": "red", "timeout": "red"}
TABLE_HEADERS = ("case and provider", "status", "median", "vs official form", "vs fastest PyTorch", "GFLOP/s", "GB/s")
COLUMNS = (0, 1, 2, 4, 5, 6, 8)  # of summary.HEADERS


class Progress(AbstractContextManager["Progress"]):
    """Tells which case runs, and each cell's result when it is known."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._bar: Any = None
        if sys.stdout.isatty():
            progress = require("rich.progress")
            self._bar = progress.Progress(
                progress.TextColumn("{task.completed}/{task.total}"),
                progress.BarColumn(),
                progress.TextColumn("{task.description}", markup=False),
                progress.TimeElapsedColumn(),
                transient=True,
            )
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, case_id: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=case_id)
        else:
            print(f"[{self._done + 1}/{self._total}] {case_id}", flush=True)

    def finish(self, records: Sequence[Record]) -> None:
        self._done += 1
        for row in summary.rows(records):
            note = f"  ({row.note})" if row.note else ""
            line = f"    {row.provider:<24} {row.cells[2]:>9}  {row.status}{note}"
            if self._bar is not None:
                self._bar.console.print(line, markup=False, highlight=False)
            else:
                print(line, flush=True)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)


def print_table(records: Sequence[Record]) -> None:
    """The result table: each case as a heading, and below it the providers that ran."""
    tables, text = require("rich.table"), require("rich.text")
    table = tables.Table(box=require("rich.box").SIMPLE_HEAD, pad_edge=False)
    for index, header in enumerate(TABLE_HEADERS):
        table.add_column(header, justify="left" if index < 2 else "right", no_wrap=True)
    previous = None
    for row in summary.rows(records):
        if row.status in summary.ABSENT:
            continue
        if row.case_id != previous:
            table.add_row(text.Text(row.case_id, style="bold"))
            previous = row.case_id
        cells = [row.cells[i] for i in COLUMNS]
        table.add_row(
            f"  {cells[0]}", text.Text(cells[1], style=STYLES.get(row.status, "")), *map(text.Text, cells[2:])
        )
    width = None if sys.stdout.isatty() else 160
    require("rich.console").Console(width=width).print(table)
