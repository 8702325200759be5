"""The report: one self-contained HTML file that works offline, without scripts, on paper and in the dark; and Markdown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from . import document, figures, summary
from .cases import WHOLE
from .errors import BenchInputError, require
from .figures import Figure
from .markdown import as_markdown
from .store import DOCUMENT, MARKDOWN, PROFILES, REPORT, Record, read_environment, read_results, to_json, write_atomic

TEMPLATE = "report.html.j2"
MAX_BYTES = 2_000_000


def write_report(folder: Path) -> Path:
    """Render the report of a finished or interrupted run into its folder, as HTML, Markdown and JSON; returns the HTML.

    All three are made of `results.jsonl` and `environment.json`, which are what a run is.

    Raises `BenchInputError` when the folder holds no run, cannot be written, or a package of the extra is missing.
    """
    records, environment = read_results(folder), read_environment(folder)
    if not records:
        raise BenchInputError(f"{folder} has no results yet")
    profiles = read_profiles(folder)
    complete = environment.get("finished") is not None
    html = render(records, environment, folder.name, profiles, complete=complete)
    status = "complete" if complete else "interrupted"
    try:
        write_atomic(folder / DOCUMENT, to_json(document.build(records, environment, folder.name, status)))
        write_atomic(folder / MARKDOWN, as_markdown(records, environment, folder.name, profiles))
        return write_atomic(folder / REPORT, html)
    except OSError as error:
        raise BenchInputError(f"{folder / REPORT} cannot be written: {error.strerror}") from error


def read_profiles(folder: Path) -> list[dict[str, Any]]:
    """The profiles of a run's steps, by folder name; a half-written one is passed over."""
    found = []
    for path in sorted((folder / PROFILES).glob("*/profile.json")):
        try:
            profile = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        if "parts" in profile:
            found.append(profile)
    return found


# What is left out of a page that would be too large, more and more; all of it stays in results.jsonl.
SLIMMER: tuple[tuple[str, ...], ...] = ((), ("data",), ("data", "timelines"), ("data", "timelines", "strips"))
LEFT_OUT = {
    "data": "raw samples and the terms of the energy model",
    "timelines": "power and clock of single cases",
    "strips": "samples in order",
}


def render(
    records: Sequence[Record],
    environment: dict[str, Any],
    run_id: str,
    profiles: Sequence[dict[str, Any]] = (),
    *,
    complete: bool,
) -> str:
    """The report's HTML, and within `MAX_BYTES` as much as fits."""
    jinja2, markup = require("jinja2"), require("markupsafe").Markup
    loader = jinja2.PackageLoader("jepa_kernels.bench", "templates")
    engine = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    engine.filters |= {"svg": markup, "duration": summary.seconds}
    template, told = engine.get_template(TEMPLATE), _told(records, environment, run_id, profiles, complete)
    single = {"strips": list(figures.strips(records)), "timelines": list(figures.timelines(records))}
    html = ""
    for left_out in SLIMMER:
        heavy = ("samples", "timeline", "energy_model") if "data" in left_out else ()
        embedded = {"records": [r | dict.fromkeys(heavy) for r in records], "profiles": list(profiles)}
        html = template.render(
            **told,
            left_out=" and ".join(LEFT_OUT[name] for name in left_out),
            by_case=_by_case([f for name, found in single.items() if name not in left_out for f in found]),
            data=markup(embed({"environment": environment, **embedded})),
        )
        if len(html.encode()) <= MAX_BYTES:
            break
    return html


def _told(
    records: Sequence[Record], environment: dict[str, Any], run_id: str, profiles: Sequence[dict[str, Any]], complete: bool
) -> dict[str, Any]:
    """What the page tells whatever its size."""
    energy_note = summary.energy_note(records)
    whole = [r for r in records if r["operator"] in WHOLE]
    return {
        "run_id": run_id,
        "environment": environment,
        "status": "complete" if complete else "interrupted",
        "counts": ", ".join(f"{n} {name}" for name, n in summary.counts(records).items()),
        "facts": list(_facts(environment)),
        "clock": records[0]["clock"],
        "cache": records[0]["cache"]["state"],
        "energy_note": energy_note,
        "headers": summary.HEADERS[:-1] if energy_note else summary.HEADERS,
        "step_headers": summary.STEP_HEADERS,
        "step_groups": _steps(whole),
        "profiles": profiles,
        "groups": _groups(records),
        "overview": _present(figures.forest(records)),
        "ml": _present(figures.steps(profiles), figures.memory(whole)),
        "detail": _present(
            figures.roofline(records, environment["ceilings"]), figures.pareto(records), *figures.scaling(records)
        ),
        "model": _model(records),
        "environment_rows": list(_flatten(environment)),
        "command": shlex.join(["jepa-kernels", *environment["argv"]]),
    }


def embed(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element."""
    return json.dumps(value, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\u0021--")


def _present(*found: Figure | None) -> list[Figure]:
    return [figure for figure in found if figure is not None]


def _by_case(found: Sequence[Figure]) -> list[dict[str, Any]]:
    ordered: dict[str, list[Figure]] = {}
    for figure in found:
        ordered.setdefault(str(figure.case_id), []).append(figure)
    return [{"case_id": case_id, "figures": group} for case_id, group in ordered.items()]


def _steps(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The timed providers of each whole step."""
    timed = [r for r in records if r["stats"] is not None]
    return [
        {"case_id": case_id, "rows": [{"status": r["status"], "cells": summary.step_row(r)} for r in group]}
        for case_id, group in groupby(timed, key=lambda r: r["case_id"])
    ]


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


def _model(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """The energy model of each case: it depends on the work alone, so one row serves all providers."""
    rows = []
    for case_id, group in groupby(records, key=lambda r: r["case_id"]):
        model = next(group).get("energy_model")
        if model:
            low, high = (summary.joules(model[key]) for key in ("joules_low", "joules_high"))
            rows.append((case_id, f"{low} to {high}", summary.percent(model["bytes_share"])))
    return rows


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
