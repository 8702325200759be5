"""Writes the cost table of a recorded run of the suite `objectives` between two marker comments of a Markdown file.

    python benchmarks/objectives_table.py benchmarks/results/cpu-zen5-objectives docs/objectives.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_kernels.bench import readme, summary
from jepa_kernels.bench.markdown import table
from jepa_kernels.bench.store import Record, read_environment, read_results

BEGIN, END = "<!-- objectives: begin -->", "<!-- objectives: end -->"
NAMES = {
    "ijepa": "I-JEPA", "lejepa": "LeJEPA", "dino": "DINO", "vicreg": "VICReg", "mae": "MAE", "vjepa2": "V-JEPA 2",
    "videomae": "VideoMAE",
}  # fmt: skip
HEADERS = (
    "objective", "time a step", "of the JEPA's step [95 %]", "plain operators over ours [95 %]", "peak memory", "GFLOP",
    "bytes, counted", "energy a sample", "model of it, bytes and products alone",
)  # fmt: skip


def row(record: Record) -> list[str]:
    """One objective by our backend."""
    shape, work, model, energy = record["shape"], record["work"], record["energy_model"], record["energy"]
    beside = next((ratio for name, ratio in record["ratios"].items() if name.endswith("-step")), None)
    share = "1"
    if beside is not None:
        low, high = 1 / beside["ci_high"], 1 / beside["ci_low"]
        share = f"{1 / beside['value']:.2f} [{low:.2f}, {high:.2f}]"
    memory, joules = record["memory"]["peak_bytes"], energy["joules_per_call"]
    frames = f"{shape['frames']} frames of " if shape["frames"] > 1 else ""
    samples = work["samples"]
    return [
        f"{NAMES[shape['objective']]}, {samples} × {frames}{shape['size']}²",
        summary.seconds(record["stats"]["median"]),
        share,
        summary.speed_up(record["ratios"].get(record["peer"])),
        summary.MISSING if memory is None else summary.mebibytes(memory),
        f"{work['flops'] / 1e9:.1f}",
        summary.mebibytes(work["bytes"]),
        summary.MISSING if joules is None else summary.joules(joules / samples),
        f"{summary.joules(model['joules_low'] / samples)} to {summary.joules(model['joules_high'] / samples)}",
    ]


def block(records: Sequence[Record], environment: dict[str, Any]) -> str:
    """The conditions, the table, and why there is no energy where there is none."""
    ours = [
        r for r in records
        if r["operator"] == "objectives" and r["stats"] and r["provider"].startswith("jk-") and r["provider"] != r["peer"]
    ]  # fmt: skip
    if not ours:
        raise SystemExit("the run holds no timed case of the suite objectives")
    encoder = f"Encoder {ours[0]['shape']['encoder']}, {ours[0]['dtype']} autocast."
    note = summary.energy_note(ours)
    lines = [f"{readme.conditions(environment)} {encoder}", "", *table(HEADERS, [row(record) for record in ours])]
    return "\n".join([*lines, *([f"Energy: {note}."] if note else [])])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("file", type=Path, help="Markdown file with the markers")
    options = parser.parse_args(arguments)
    readme.replace_block(options.file, BEGIN, END, block(read_results(options.run), read_environment(options.run)))


if __name__ == "__main__":
    main()
