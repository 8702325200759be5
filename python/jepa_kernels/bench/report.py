"""The report: one self-contained HTML file that works offline, without scripts, on paper and in the dark."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from . import plots, summary
from .errors import BenchInputError, require
from .store import DOCUMENT, REPORT, Record, read_environment, read_results, write_atomic

TEMPLATE = "report.html.j2"
MAX_BYTES = 2_000_000


def write_report(folder: Path) -> Path:
    """Render the report of a finished or interrupted run into its folder.

    Raises `BenchInputError` when the folder holds no run, cannot be written, or a package of the extra is missing.
    """
    records, environment = read_results(folder), read_environment(folder)
    if not records:
        raise BenchInputError(f"{folder} has no results yet")
    html = render(records, environment, folder.name, complete=(folder / DOCUMENT).is_file())
    try:
        return write_atomic(folder / REPORT, html)
    except OSError as error:
        raise BenchInputError(f"{folder / REPORT} cannot be written: {error.strerror}") from error


def render(records: Sequence[Record], environment: dict[str, Any], run_id: str, *, complete: bool) -> str:
    """The report's HTML."""
    html = _render(records, environment, run_id, complete)
    if len(html.encode()) > MAX_BYTES:  # raw samples stay in results.jsonl
        html = _render([{**r, "samples": None} for r in records], environment, run_id, complete)
    return html


def _render(records: Sequence[Record], environment: dict[str, Any], run_id: str, complete: bool) -> str:
    jinja2 = require("jinja2")
    loader = jinja2.PackageLoader("jepa_kernels.bench", "templates")
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        TEMPLATE
    )
    markup = require("markupsafe").Markup
    drawn = {name: markup(svg) if svg else None for name, svg in _plots(records, environment).items()}
    statuses, energy_note = summary.counts(records), summary.energy_note(records)
    return str(
        template.render(
            run_id=run_id,
            environment=environment,
            status="complete" if complete else "interrupted",
            counts=", ".join(f"{n} {name}" for name, n in statuses.items()),
            facts=list(_facts(environment)),
            clock=records[0]["clock"],
            energy_note=energy_note,
            headers=summary.HEADERS[:-1] if energy_note else summary.HEADERS,
            groups=_groups(records),
            points=_points(records),
            copy_buffer=f"{environment['ceilings']['copy_buffer_bytes'] / 2**20:,.0f} MiB",
            environment_rows=list(_flatten(environment)),
            command=shlex.join(["jepa-kernels", *environment["argv"]]),
            data=markup(embed({"environment": environment, "records": list(records)})),
            **drawn,
        )
    )


def _plots(records: Sequence[Record], environment: dict[str, Any]) -> dict[str, str | None]:
    return {"roofline": plots.roofline(records, environment["ceilings"]), "forest": plots.forest(records)}


def embed(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element."""
    return json.dumps(value, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\u0021--")


def _groups(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One entry a case: its rows, and apart from them the providers that this machine cannot run."""
    shapes = {r["case_id"]: _shape(r) for r in records}
    groups = []
    for case_id, group in groupby(summary.rows(records), key=lambda row: row.case_id):
        rows = list(group)
        absent = [row for row in rows if row.status in summary.ABSENT]
        shown = [row for row in rows if row.status not in summary.ABSENT]
        groups.append({"case_id": case_id, "shape": shapes[case_id], "rows": shown, "absent": absent})
    return groups


def _shape(record: Record) -> str:
    parts = [f"{k.replace('_', ' ')} {v}" for k, v in record["shape"].items() if v not in ("None", "()", 0)]
    return ", ".join([*parts, record["dtype"]])


def _points(records: Sequence[Record]) -> list[dict[str, str]]:
    return [
        {
            "case_id": r["case_id"],
            "provider": r["provider"],
            "intensity": f"{r['work']['flops'] / r['work']['bytes']:.3g}",
            "gflops": summary.giga(r["rates"]["flops_per_s"]),
            "gbytes": summary.giga(r["rates"]["bytes_per_s"]),
        }
        for r in records
        if r["rates"] is not None
    ]


def _facts(environment: dict[str, Any]) -> Iterator[tuple[str, str]]:
    hardware, ceilings, commit = environment["hardware"], environment["ceilings"], environment["commit"]
    gpus = ", ".join(gpu["name"] for gpu in hardware["gpus"]) or "none"
    yield "device", environment["device"]
    yield "processor", f"{hardware['cpu']['name']}, {environment['system']['threads']} threads"
    yield "instruction set", hardware["cpu"]["instruction_set"] or "native module absent"
    yield "GPU", gpus
    yield "copy", f"{summary.giga(ceilings['copy_bytes_per_s'])} GB/s"
    yield "fp32 matrix product", f"{summary.giga(ceilings['fp32_flops_per_s'])} GFLOP/s"
    yield "bf16 matrix product", f"{summary.giga(ceilings['bf16_flops_per_s'])} GFLOP/s"
    yield "torch", str(environment["versions"]["torch"])
    dirty = " with changes" if commit["dirty"] else ""
    yield "commit", f"{commit['id'][:12]}{dirty}" if commit["id"] else "not a source tree"


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, entry in value.items():
        name = f"{prefix}{key}"
        if isinstance(entry, Mapping):
            yield from _flatten(entry, f"{name}.")
        else:
            yield name, "unknown" if entry is None else str(entry)
