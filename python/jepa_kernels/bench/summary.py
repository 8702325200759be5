"""Rows of the result table, with one text form for the terminal, the report and the README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .store import Record

HEADERS = (
    "provider",
    "status",
    "median",
    "IQR",
    "speed-up over official form [95 %]",
    "over fastest PyTorch",
    "GFLOP/s",
    "of matrix rate",
    "GB/s",
    "of copy rate",
    "energy / call",
)
MISSING = "–"
ABSENT = ("unsupported", "skipped")  # statuses of providers that did not run


@dataclass(frozen=True)
class Row:
    """One cell of a run as text. `note` says what a reader must know of it: flags, or why there is no value."""

    case_id: str
    operator: str
    provider: str
    status: str
    cells: tuple[str, ...]  # in the order of HEADERS
    note: str
    is_peer: bool
    fastest: str | None  # the fastest PyTorch form of the case


def seconds(value: float) -> str:
    """A duration with three significant digits and its unit."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            return f"{_three(value / scale)} {unit}"
    return f"{_three(value * 1e9)} ns"


def joules(value: float) -> str:
    """An energy with three significant digits and its unit."""
    for scale, unit in ((1.0, "J"), (1e-3, "mJ")):
        if value >= scale:
            return f"{_three(value / scale)} {unit}"
    return f"{_three(value * 1e6)} µJ"


def mebibytes(value: float) -> str:
    """A size in MiB with three significant digits."""
    return f"{_three(value / 2**20)} MiB"


def giga(value: float) -> str:
    """A rate in units of 10^9."""
    return _three(value * 1e-9)


def percent(value: float) -> str:
    """A share of a ceiling."""
    return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"


def speed_up(ratio: dict[str, Any] | None) -> str:
    """A ratio with its interval."""
    if ratio is None:
        return MISSING
    return f"{_three(ratio['value'])}× [{_three(ratio['ci_low'])}, {_three(ratio['ci_high'])}]"


def speed_up_value(ratio: dict[str, Any] | None) -> str:
    """A ratio alone."""
    return MISSING if ratio is None else f"{_three(ratio['value'])}×"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def fastest_torch(records: Sequence[Record], case_id: str) -> str | None:
    """Name of the PyTorch form with the lowest median in a case; a yardstick does other work, and is none."""
    forms = [
        r for r in records if r["case_id"] == case_id and r["provider"].startswith("torch-") and not r["yardstick"]
    ]
    timed = [r for r in forms if r["stats"] is not None]
    return min(timed, key=lambda r: r["stats"]["median"])["provider"] if timed else None


def rows(records: Sequence[Record]) -> list[Row]:
    """One row a record, in order."""
    best = {case: fastest_torch(records, case) for case in {r["case_id"] for r in records}}
    return [_row(record, best[record["case_id"]]) for record in records]


def _row(record: Record, best: str | None) -> Row:
    stats, rates, energy = record["stats"], record["rates"], record["energy"]
    is_peer = record["provider"] == record["peer"]
    if stats is None:
        cells = (record["provider"], record["status"], *[MISSING] * (len(HEADERS) - 2))
    else:
        against_peer = "official form" if is_peer else speed_up(record["ratios"].get(record["peer"]))
        against_best = speed_up_value(record["ratios"].get(best or ""))
        if record["yardstick"]:
            against_peer, against_best = "yardstick", MISSING
        if best == record["provider"]:
            against_best = "fastest"
        cells = (
            record["provider"],
            record["status"],
            seconds(stats["median"]),
            seconds(stats["q3"] - stats["q1"]),
            against_peer,
            against_best,
            giga(rates["flops_per_s"]),
            percent(rates["compute_fraction"]),
            giga(rates["bytes_per_s"]),
            percent(rates["copy_fraction"]),
            MISSING if energy["joules_per_call"] is None else joules(energy["joules_per_call"]),
        )
    note = "; ".join(record["flags"]) if stats is not None else (record["error"] or "")
    return Row(record["case_id"], record["operator"], record["provider"], record["status"], cells, note, is_peer, best)


def energy_note(records: Sequence[Record]) -> str | None:
    """Why energy is missing, when no timed cell has it."""
    timed = [r["energy"] for r in records if r["stats"] is not None]
    if any(energy["joules_per_call"] is not None for energy in timed):
        return None
    return "; ".join(sorted({str(energy["reason"]) for energy in timed})) or "nothing was timed"


def counts(records: Sequence[Record]) -> dict[str, int]:
    """How many cells ended in each status."""
    found: dict[str, int] = {}
    for record in records:
        found[record["status"]] = found.get(record["status"], 0) + 1
    return found


STEP_HEADERS = (
    "provider", "status", "samples / s", "time a step", "speed-up [95 %]", "energy / sample", "peak memory",
    "of matrix rate",
)  # fmt: skip


def step_row(record: Record) -> tuple[str, ...]:
    """What the one who trains a model asks of a whole step, in the order of STEP_HEADERS."""
    energy, memory, rates = record["energy"]["joules_per_call"], record["memory"]["peak_bytes"], record["rates"]
    is_peer = record["provider"] == record["peer"]
    return (
        record["provider"],
        record["status"],
        _three(rates["samples_per_s"]),
        seconds(record["stats"]["median"]),
        "official form" if is_peer else speed_up(record["ratios"].get(record["peer"])),
        MISSING if energy is None else joules(energy / record["work"]["samples"]),
        MISSING if memory is None else mebibytes(memory),
        percent(rates["compute_fraction"]),
    )
