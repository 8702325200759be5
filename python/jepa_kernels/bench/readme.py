"""Writes the measured table of a run between two marker comments of a Markdown file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import summary
from .errors import BenchInputError
from .store import Record, read_environment, read_results, write_atomic

BEGIN = "<!-- jepa-kernels benchmark: begin -->"
END = "<!-- jepa-kernels benchmark: end -->"


def update_readme(folder: Path, readme: Path) -> None:
    """Replace what stands between the benchmark's markers by the run's table and its conditions."""
    replace_block(readme, BEGIN, END, table(read_results(folder), read_environment(folder)))


def replace_block(readme: Path, begin_marker: str, end_marker: str, block: str) -> None:
    """Replace what stands between two marker lines of a Markdown file.

    Raises `BenchInputError` when the file cannot be read or written, or the markers are missing or out of order.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchInputError(f"{readme} cannot be read: {error.strerror}") from error
    begin, end = text.find(begin_marker), text.find(end_marker)
    if begin < 0 or end < begin:
        raise BenchInputError(f"{readme} must contain the line {begin_marker} and after it the line {end_marker}")
    try:
        write_atomic(readme, f"{text[: begin + len(begin_marker)]}\n{block}\n{text[end:]}")
    except OSError as error:
        raise BenchInputError(f"{readme} cannot be written: {error.strerror}") from error


def table(records: Sequence[Record], environment: dict[str, Any]) -> str:
    """Markdown: the conditions in one paragraph, then one row for each of our backends that was timed."""
    lines = [
        conditions(environment),
        "",
        "| case | backend | median | speed-up over the official form [95 %] | over the fastest PyTorch form | status |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary.rows([record for record in records if not record["yardstick"]]):
        if row.provider.startswith("jk-") and row.cells[2] != summary.MISSING:
            _, status, median, _, official, fastest = row.cells[:6]
            lines.append(
                f"| {row.case_id} | {row.provider} | {median} | {official} | {fastest} {row.fastest or ''} | {status} |"
            )
    return "\n".join(lines)


def conditions(environment: dict[str, Any]) -> str:
    """Where the numbers come from, in one sentence each."""
    hardware, ceilings, commit = environment["hardware"], environment["ceilings"], environment["commit"]
    where = hardware["cpu"]["name"]
    if environment["device"].startswith("cuda"):
        where = ceilings["device"]
    source = f"commit {commit['id'][:12]}{' with changes' if commit['dirty'] else ''}" if commit["id"] else (
        f"version {environment['versions']['jepa-kernels']}"
    )  # fmt: skip
    left_out = [glob.removeprefix("!") for glob in environment["suite"]["providers"] if glob.startswith("!")]
    without = f", without {', '.join(f'`{glob}`' for glob in left_out)}" if left_out else ""
    return (
        f"Measured {environment['datetime'][:10]} on {where} ({environment['system']['threads']} threads), "
        f"torch {environment['versions']['torch']}, {source}, suite `{environment['suite']['name']}`{without}; "
        f"in the same run a copy reached {summary.giga(ceilings['copy_bytes_per_s'])} GB/s and matrix products "
        f"{summary.giga(ceilings['fp32_flops_per_s'])} (fp32) and {summary.giga(ceilings['bf16_flops_per_s'])} "
        "(bf16) GFLOP/s. Medians of interleaved rounds with warm caches; a speed-up is peer time over our time."
    )
