"""The figures of the report: each a plot with the table of the same numbers. A figure without data is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from . import detail_plots, plots, summary
from .store import Record

Rows = list[list[str]]
TIMELINE_ROWS = 120  # a plot shows no more, and the rest stays in results.jsonl
CHANNELS = {"power_w": "power, W", "sm_mhz": "SM clock, MHz", "cpu_mhz": "CPU clock, MHz"}


@dataclass(frozen=True)
class Figure:
    """A plot (inline SVG), what it shows, and its numbers. `case_id` groups the figures of single cases."""

    name: str
    title: str
    svg: str
    caption: str
    headers: tuple[str, ...]
    rows: Rows
    case_id: str | None = None


def steps(profiles: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Where a whole step goes, from the profiles of the run."""
    if not profiles:
        return None
    parts = [name for name in profiles[0]["parts"] if any(p["parts"][name] > 0 for p in profiles)]
    rows = [
        [p["case_id"], p["provider"], *(summary.seconds(p["parts"][n]) if p["parts"][n] else "0" for n in parts)]
        for p in profiles
    ]
    caption = (
        "One call under torch.profiler, in a process of its own after the timing: slower than the times above, in "
        "like proportions."
    )
    headers = ("case", "provider", *parts)
    return Figure("steps", "Parts of a step", detail_plots.stack(profiles, parts), caption, headers, rows)


def memory(records: Sequence[Record]) -> Figure | None:
    """Peak memory of whole steps."""
    known = [r for r in records if r["stats"] is not None and r["memory"]["peak_bytes"] is not None]
    if not known:
        return None
    rows = [[r["case_id"], r["provider"], summary.mebibytes(r["memory"]["peak_bytes"])] for r in known]
    caption = "Highest point of a call's own allocations above what was held before it, from one call outside the timing."
    return Figure("memory", "Peak memory", detail_plots.memory(known), caption, ("case", "provider", "peak"), rows)


def forest(records: Sequence[Record]) -> Figure | None:
    """Speed-up over the peer."""
    svg = plots.forest(records)
    if svg is None:
        return None
    compared = [r for r in records if r["peer"] in r["ratios"] and not r["yardstick"]]
    rows = [[r["case_id"], r["provider"], r["peer"], summary.speed_up(r["ratios"][r["peer"]])] for r in compared]
    caption = "Dot: median of the paired ratios of each round; bar: bootstrap 95 % interval. Right of 1× is faster."
    headers = ("case", "provider", "over", "speed-up [95 %]")
    return Figure("forest", "Speed-up over the official form", svg, caption, headers, rows)


def roofline(records: Sequence[Record], ceilings: Mapping[str, Any]) -> Figure | None:
    """Rate over intensity under the roofs of this run."""
    svg = plots.roofline(records, dict(ceilings))
    if svg is None:
        return None
    rows = [
        [
            r["case_id"], r["provider"], f"{r['work']['flops'] / r['work']['bytes']:.3g}",
            summary.giga(r["rates"]["flops_per_s"]), summary.giga(r["rates"]["bytes_per_s"]),
            summary.percent(max(r["rates"]["compute_fraction"], r["rates"]["copy_fraction"])),
        ]
        for r in records
        if r["rates"] is not None
    ]  # fmt: skip
    caption = (
        f"Roofs are measured in this run, not taken from a data sheet: a copy of "
        f"{summary.mebibytes(ceilings['copy_buffer_bytes'])} and matrix products of {ceilings['matrix_size']}². A point "
        "above its roof works from cache, or beats the library's matrix product."
    )
    headers = ("case", "provider", "FLOP per byte", "GFLOP/s", "GB/s", "of the nearer roof")
    return Figure("roofline", "Roofline", svg, caption, headers, rows)


def pareto(records: Sequence[Record]) -> Figure | None:
    """Time and energy of a call, where energy was measured."""
    known = [r for r in records if r["stats"] is not None and r["energy"]["joules_per_call"] is not None]
    if not known:
        return None
    rows = [
        [
            r["case_id"], r["provider"], summary.seconds(r["stats"]["median"]),
            summary.joules(r["energy"]["joules_per_call"]),
            summary.joules(r["stats"]["median"] * r["energy"]["joules_per_call"]) + "·s",
        ]
        for r in known
    ]  # fmt: skip
    caption = "Lower left is better in both. A line joins the providers of a case; measured energy only, never the model."
    headers = ("case", "provider", "time a call", "energy a call", "product")
    return Figure("pareto", "Time and energy", detail_plots.pareto(known), caption, headers, rows)


def scaling(records: Sequence[Record]) -> Iterator[Figure]:
    """Time over the size of the work, one figure an operator with at least two sizes."""
    timed = sorted((r for r in records if r["stats"] is not None and r["work"]), key=lambda r: r["operator"])
    for operator, group in groupby(timed, key=lambda r: r["operator"]):
        cells = list(group)
        measure = "flops" if operator not in ("ema_update", "adamw_ema") else "bytes"
        if len({r["work"][measure] for r in cells}) < 2:
            continue
        cells.sort(key=lambda r: (r["provider"], r["dtype"], r["work"][measure]))
        rows = [
            [r["provider"], r["dtype"], r["case_id"], f"{r['work'][measure]:.4g}", summary.seconds(r["stats"]["median"])]
            for r in cells
        ]
        unit = "useful FLOP a call" if measure == "flops" else "least bytes a call"
        caption = "Cases of different masks and shapes: a line joins sizes, it is no fit. A flat left end is overhead."
        yield Figure(
            f"scaling-{operator.replace('_', '-')}", f"Scaling of {operator}", detail_plots.scaling(cells, measure, unit),
            caption, ("provider", "dtype", "case", unit, "median"), rows,
        )  # fmt: skip


def strips(records: Sequence[Record]) -> Iterator[Figure]:
    """Every sample in the order in which it was taken, one figure a case."""
    for case_id, cells in _by_case(r for r in records if r["stats"] is not None and r["samples"]):
        if max(len(r["samples"]["seconds"]) for r in cells) < 2:
            continue
        by_round: dict[int, dict[str, float]] = {}
        for r in cells:
            for index, value in zip(r["samples"]["round"], r["samples"]["seconds"], strict=True):
                by_round.setdefault(index, {})[r["provider"]] = value
        names = [r["provider"] for r in cells]
        rows = [
            [str(index), *(summary.seconds(found[n]) if n in found else summary.MISSING for n in names)]
            for index, found in sorted(by_round.items())
        ]
        caption = (
            "Each sample over the provider's own median. What moves all of them together is the machine, and cancels "
            "in the ratios."
        )
        name = f"strip-{_slug(case_id)}"
        yield Figure(name, "Samples in order", detail_plots.strip(name, cells), caption, ("round", *names), rows, case_id)


def timelines(records: Sequence[Record]) -> Iterator[Figure]:
    """Power and clock while a case was measured, where the machine tells them."""
    for case_id, cells in _by_case(r for r in records if (r.get("timeline") or {}).get("t_s")):
        channels = [name for name in CHANNELS if any(r["timeline"].get(name) for r in cells)][:2]
        if not channels:
            continue
        name = f"timeline-{_slug(case_id)}"
        points = sorted(_points(cells, channels), key=lambda row: row[0])
        shown = points[:: max(1, -(-len(points) // TIMELINE_ROWS))]
        rows = [
            [f"{t:.2f}", phase, provider, *(summary.MISSING if v is None else f"{v:g}" for v in values)]
            for t, phase, provider, *values in shown
        ]
        windows = [w for r in cells for w in r["timeline"]["windows"]]
        labels = [CHANNELS[c] for c in channels]
        svg = detail_plots.timeline(name, shown, labels, windows)
        caption = "Read between samples, never inside one. Shaded: energy windows and idle phases."
        yield Figure(
            name, "Power and clock", svg, caption, ("second", "phase", "provider", *labels), rows, case_id
        )  # fmt: skip


def _points(cells: Sequence[Record], channels: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    idle_seen: set[float] = set()
    for r in cells:
        line = r["timeline"]
        columns = [line.get(c) or [None] * len(line["t_s"]) for c in channels]
        for t, phase, *values in zip(line["t_s"], line["phase"], *columns, strict=True):
            if phase != "idle":
                yield t, phase, r["provider"], *values
            elif t not in idle_seen:  # the idle phases are the case's, and stand with each provider
                idle_seen.add(t)
                yield t, phase, "none", *values


def _by_case(records: Iterable[Record]) -> Iterator[tuple[str, list[Record]]]:
    for case_id, group in groupby(records, key=lambda r: r["case_id"]):
        yield case_id, list(group)


def _slug(case_id: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in case_id)
