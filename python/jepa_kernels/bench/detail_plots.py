"""Plots of the report's detail: samples in order, machine timeline, time against energy, scaling, parts, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from . import summary
from .plots import GRID, INK, PARTS, colour, draw, draw_many
from .store import Record

MARKS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")
DASHES = ("-", "--", ":", "-.")


def stack(profiles: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> str:
    """One bar a profile, cut by part, as shares of the call."""

    def paint(axes: Any) -> None:
        for place, found in enumerate(profiles):
            total, left = sum(found["parts"].values()) or 1.0, 0.0
            for index, name in enumerate(parts):
                share = found["parts"][name] / total
                label = name if place == 0 else None
                axes.barh([place], [share], left=[left], height=0.62, color=PARTS[index], label=label)
                left += share
        axes.set_yticks(range(len(profiles)), [f"{p['case_id']}\n{p['provider']}" for p in profiles], fontsize=8)
        axes.set_ylim(len(profiles) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.set_xlabel("share of a call")
        axes.tick_params(axis="y", length=0)
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))

    return draw("steps", 6.4, 1.0 + 0.55 * len(profiles), paint, "Bars: parts of a step")


def memory(records: Sequence[Record]) -> str:
    """One bar a cell."""

    def paint(axes: Any) -> None:
        values = [r["memory"]["peak_bytes"] / 2**20 for r in records]
        axes.barh(range(len(records)), values, height=0.62, color=[colour(r["provider"]) for r in records])
        axes.set_yticks(range(len(records)), [f"{r['case_id']}\n{r['provider']}" for r in records], fontsize=8)
        axes.set_ylim(len(records) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("peak memory of a call, MiB")

    return draw("memory", 6.4, 0.8 + 0.42 * len(records), paint, "Bars: peak memory")


def pareto(records: Sequence[Record]) -> str:
    """Joules over milliseconds, log-log."""

    def paint(axes: Any) -> None:
        for _case, group in groupby(records, key=lambda r: r["case_id"]):
            cells = sorted(group, key=lambda r: r["stats"]["median"])
            times = [r["stats"]["median"] * 1e3 for r in cells]
            joules = [r["energy"]["joules_per_call"] for r in cells]
            axes.plot(times, joules, color=GRID, linewidth=1, zorder=1)
            for r, x, y in zip(cells, times, joules, strict=True):
                axes.plot([x], [y], "o", color=colour(r["provider"]), markersize=5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("milliseconds a call")
        axes.set_ylabel("joules a call")
        axes.grid(True)

    return draw("pareto", 6.2, 4.2, paint, "Scatter: energy over time of a call")


def scaling(cells: Sequence[Record], measure: str, unit: str) -> str:
    """Median over the work of a call, a line a provider and dtype."""

    def paint(axes: Any) -> None:
        groups = groupby(cells, key=lambda r: (r["provider"], r["dtype"]))
        for index, ((provider, dtype), group) in enumerate(groups):
            found = list(group)
            axes.plot(
                [r["work"][measure] for r in found],
                [r["stats"]["median"] * 1e3 for r in found],
                DASHES[0 if dtype == "bf16" else 1],
                marker=MARKS[index % len(MARKS)], markersize=4.5, linewidth=1.1, color=colour(provider),
                label=f"{provider} {dtype}",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(unit)
        axes.set_ylabel("milliseconds a call")
        axes.grid(True)
        axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.01, 1.0))

    return draw(f"scaling-{cells[0]['operator']}", 5.6, 3.8, paint, "Lines: time over size")


def strip(name: str, cells: Sequence[Record]) -> str:
    """Samples over their provider's median, at the place in the run where they were taken."""

    def paint(axes: Any) -> None:
        for index, r in enumerate(cells):
            samples, median = r["samples"], r["stats"]["median"]
            places = [n + p / len(cells) for n, p in zip(samples["round"], samples["position"], strict=True)]
            axes.plot(
                places, [100 * (s / median - 1) for s in samples["seconds"]], DASHES[index % len(DASHES)],
                marker=MARKS[index % len(MARKS)], markersize=2.6, linewidth=0.9, color=colour(r["provider"]),
                label=f"{r['provider']} ({summary.seconds(median)})",
            )  # fmt: skip
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("round")
        axes.set_ylabel("% from its median")
        axes.grid(True)
        axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.01, 1.0))

    return draw(name, 6.0, 2.5, paint, "Lines: samples in the order taken")


def timeline(
    name: str, points: Sequence[Sequence[Any]], labels: Sequence[str], windows: Sequence[Mapping[str, Any]]
) -> str:
    """One row of axes a channel, over seconds; windows shaded."""

    def paint(rows: Sequence[Any]) -> None:
        providers = sorted({p[2] for p in points})
        for channel, (axes, label) in enumerate(zip(rows, labels, strict=True)):
            for window in windows:
                axes.axvspan(window["begin_s"], window["end_s"], color=GRID, alpha=0.5, linewidth=0)
            for index, provider in enumerate(providers):
                seen = [(p[0], p[3 + channel]) for p in points if p[2] == provider and p[3 + channel] is not None]
                if seen:
                    tint = INK if provider == "none" else colour(provider)
                    axes.plot(*zip(*seen, strict=True), MARKS[index % len(MARKS)], markersize=3, color=tint,
                              label="idle" if provider == "none" else provider)  # fmt: skip
            axes.set_ylabel(label)
            axes.grid(True)
        rows[-1].set_xlabel("seconds since the case began")
        rows[0].legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.01, 1.0))

    return draw_many(name, 6.0, 1.7 * len(labels), len(labels), paint, "Dots: machine state over time")
