"""Plots of the report as inline SVG: text stays text, and colours follow the page's light or dark style."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from .errors import require
from .store import Record

# matplotlib needs real colours; each stands for a style-sheet variable that replaces it in the SVG.
INK, GRID, OURS, THEIRS, REFERENCE, ROOF = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    OURS: "var(--ours)",
    THEIRS: "var(--theirs)",
    REFERENCE: "var(--reference)",
    ROOF: "var(--roof)",
}
MARKERS = {"patch_embed": "s", "masked_attention": "o", "ema_update": "D", "train_step": "^"}
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "legend.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def colour(provider: str) -> str:
    """Ours, our plain reference, or PyTorch."""
    if provider == "jk-reference":
        return REFERENCE
    return OURS if provider.startswith("jk-") else THEIRS


def roofline(records: Sequence[Record], ceilings: dict[str, Any]) -> str | None:
    """Work rate over arithmetic intensity, under the ceilings measured in the same run."""
    timed = [r for r in records if r["rates"] is not None and r["stats"] is not None]
    if not timed:
        return None
    figure, axes = _figure(7.2, 4.6, "roofline")
    intensities = [r["work"]["flops"] / r["work"]["bytes"] for r in timed]
    low, high = min(*intensities, 1.0) / 3, max(*intensities, 100.0) * 3
    for label, peak, style in (
        ("bf16 matrix products", ceilings["bf16_flops_per_s"], "-"),
        ("fp32 matrix products", ceilings["fp32_flops_per_s"], "--"),
    ):
        ridge = peak / ceilings["copy_bytes_per_s"]
        xs = [low, ridge, high] if low < ridge < high else [low, high]
        ys = [min(peak, x * ceilings["copy_bytes_per_s"]) * 1e-9 for x in xs]
        axes.plot(xs, ys, style, color=ROOF, linewidth=1.3, label=f"{label}: {peak * 1e-9:,.0f} GFLOP/s")
    for record, intensity in zip(timed, intensities, strict=True):
        filled = colour(record["provider"])
        axes.plot(
            [intensity],
            [record["rates"]["flops_per_s"] * 1e-9],
            MARKERS.get(record["operator"], "o"),
            color=filled,
            markerfacecolor=filled if record["dtype"] == "bf16" else "none",
            markersize=6,
            alpha=0.9,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("arithmetic intensity, useful FLOP per byte that must move")
    axes.set_ylabel("useful GFLOP/s")
    axes.grid(True, which="major", linewidth=0.6)
    _legend(axes, sorted({r["operator"] for r in timed}), ceilings)
    return _svg(figure, "roofline")


def _legend(axes: Any, operators: Sequence[str], ceilings: dict[str, Any]) -> None:
    lines = require("matplotlib.lines")
    handles = [
        lines.Line2D([], [], color=ROOF, label=f"bf16 roof, {ceilings['bf16_flops_per_s'] * 1e-9:,.0f} GFLOP/s"),
        lines.Line2D(
            [],
            [],
            color=ROOF,
            linestyle="--",
            label=f"fp32 roof, {ceilings['fp32_flops_per_s'] * 1e-9:,.0f} GFLOP/s",
        ),
    ]
    for operator in operators:
        marker = MARKERS.get(operator, "o")
        handles.append(lines.Line2D([], [], color=INK, marker=marker, linestyle="", label=operator))
    for name, tint in (("ours", OURS), ("our plain reference", REFERENCE), ("PyTorch", THEIRS)):
        handles.append(lines.Line2D([], [], color=tint, linewidth=5, label=name))
    handles.append(lines.Line2D([], [], color=INK, marker="o", markerfacecolor="none", linestyle="", label="hollow: fp32"))
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def forest(records: Sequence[Record]) -> str | None:
    """Speed-up of each provider over its case's named peer, with the 95 % interval."""
    lines = [r for r in records if r["stats"] is not None and r["peer"] in r["ratios"]]
    if not lines:
        return None
    height = 0.8 + 0.24 * (len(lines) + len({r["case_id"] for r in lines}))
    figure, axes = _figure(7.2, height, "forest")
    position, ticks, labels = 0.0, [], []
    previous = None
    for record in lines:
        if record["case_id"] != previous:
            position += 1
            axes.text(
                0.0, position, record["case_id"], transform=axes.get_yaxis_transform(),
                fontsize=8, fontweight="bold", va="center", ha="left", clip_on=False,
            )  # fmt: skip
            previous = record["case_id"]
        position += 1
        ratio, tint = record["ratios"][record["peer"]], colour(record["provider"])
        axes.plot([ratio["ci_low"], ratio["ci_high"]], [position, position], color=tint, linewidth=2)
        axes.plot([ratio["value"]], [position], "o", color=tint, markersize=5)
        ticks.append(position)
        labels.append(record["provider"])
    axes.axvline(1.0, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(position + 0.7, 0.3)
    _ratio_axis(axes, [r["ratios"][r["peer"]] for r in lines])
    axes.grid(True, axis="x", linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    return _svg(figure, "forest")


def _ratio_axis(axes: Any, ratios: Sequence[dict[str, float]]) -> None:
    ticker = require("matplotlib.ticker")
    low = min(0.8, *(r["ci_low"] for r in ratios)) / 1.15
    high = max(1.25, *(r["ci_high"] for r in ratios)) * 1.15
    axes.set_xlim(low, high)
    wanted = [v for v in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= v <= high]
    axes.set_xticks(wanted, [f"{v:g}×" for v in wanted])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("times as fast as the official form (right of 1× is faster)")


def _figure(width: float, height: float, name: str) -> tuple[Any, Any]:
    matplotlib = require("matplotlib")
    figures = require("matplotlib.figure")
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = figures.Figure(figsize=(width, height))
        return figure, figure.add_subplot()


def _svg(figure: Any, name: str) -> str:
    """The figure as an SVG element whose ids do not meet those of another figure on the page."""
    matplotlib = require("matplotlib")
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for value, variable in VARIABLES.items():
        svg = svg.replace(value, variable)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
