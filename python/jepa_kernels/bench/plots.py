"""Plots of the report as inline SVG: text stays text, and colours follow the page's light or dark style."""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .errors import require
from .store import Record

# matplotlib needs real colours; each stands for a style-sheet variable that replaces it in the SVG.
INK, GRID, OURS, THEIRS, REFERENCE, ROOF, PAPER, *PARTS = (f"#{i:02d}{i:02d}{i:02d}" for i in range(1, 14))
VARIABLES = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    OURS: "var(--ours)",
    THEIRS: "var(--theirs)",
    REFERENCE: "var(--reference)",
    ROOF: "var(--roof)",
    PAPER: "var(--paper)",
    **{tint: f"var(--part{index})" for index, tint in enumerate(PARTS)},
}
MARKERS = {
    "patch_embed": "s", "patch_embed_pair": "p", "masked_attention": "o", "ema_update": "D", "train_step": "^",
    "objectives": "v",
}  # fmt: skip
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.labelcolor": INK,
}


def colour(provider: str) -> str:
    """Ours, our plain reference, or PyTorch."""
    if provider == "jk-reference":
        return REFERENCE
    return OURS if provider.startswith("jk-") else THEIRS


def roofline(records: Sequence[Record], ceilings: dict[str, Any]) -> str | None:
    """Work rate over arithmetic intensity, under the ceilings measured in the same run."""
    timed = [r for r in records if r["rates"] is not None]
    if not timed:
        return None

    def paint(axes: Any) -> None:
        intensities = [r["work"]["flops"] / r["work"]["bytes"] for r in timed]
        low, high = min(*intensities, 1.0) / 3, max(*intensities, 100.0) * 3
        for peak, style in ((ceilings["bf16_flops_per_s"], "-"), (ceilings["fp32_flops_per_s"], "--")):
            ridge = peak / ceilings["copy_bytes_per_s"]
            xs = [low, ridge, high] if low < ridge < high else [low, high]
            ys = [min(peak, x * ceilings["copy_bytes_per_s"]) * 1e-9 for x in xs]
            axes.plot(xs, ys, style, color=ROOF, linewidth=1.3)
        for record, intensity in zip(timed, intensities, strict=True):
            tint, marker = colour(record["provider"]), MARKERS.get(record["operator"], "o")
            fill = tint if record["dtype"] == "bf16" else "none"
            rate = record["rates"]["flops_per_s"] * 1e-9
            axes.plot([intensity], [rate], marker, color=tint, markerfacecolor=fill, markersize=6)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_xlabel("arithmetic intensity: useful FLOP per byte that must move")
        axes.set_ylabel("useful GFLOP/s")
        axes.grid(True, which="major")
        handles = _legend(sorted({r["operator"] for r in timed}), ceilings)
        axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))

    return draw("roofline", 6.2, 4.6, paint, "Scatter: work rate over arithmetic intensity, under the measured roofs")


def _legend(operators: Sequence[str], ceilings: dict[str, Any]) -> list[Any]:
    line = require("matplotlib.lines").Line2D
    handles = []
    for dtype, style in (("bf16", "-"), ("fp32", "--")):
        rate = ceilings[f"{dtype}_flops_per_s"] * 1e-9
        handles.append(line([], [], color=ROOF, linestyle=style, label=f"{dtype} roof, {rate:,.0f} GFLOP/s"))
    for name, tint in (("ours", OURS), ("our plain reference", REFERENCE), ("PyTorch", THEIRS)):
        handles.append(line([], [], color=tint, linewidth=5, label=name))
    for operator in operators:
        handles.append(line([], [], color=INK, marker=MARKERS.get(operator, "o"), linestyle="", label=operator))
    handles.append(line([], [], color=INK, marker="o", markerfacecolor="none", linestyle="", label="hollow: fp32"))
    return handles


def forest(records: Sequence[Record]) -> str | None:
    """Speed-up of each provider over its case's named peer, with the 95 % interval."""
    compared = [r for r in records if r["peer"] in r["ratios"] and not r["yardstick"]]
    if not compared:
        return None
    height = 0.8 + 0.22 * (len(compared) + 1.2 * len({r["case_id"] for r in compared}))

    def paint(axes: Any) -> None:
        position, ticks, previous = 0.0, [], None
        for record in compared:
            if record["case_id"] != previous:
                position += 1.2
                _heading(axes, position, record["case_id"])
                previous = record["case_id"]
            position += 1
            ratio, tint = record["ratios"][record["peer"]], colour(record["provider"])
            axes.plot([ratio["ci_low"], ratio["ci_high"]], [position, position], color=tint, linewidth=2)
            axes.plot([ratio["value"]], [position], "o", color=tint, markersize=5)
            ticks.append(position)
        axes.axvline(1.0, color=INK, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yticks(ticks, [record["provider"] for record in compared], fontsize=8)
        axes.set_ylim(position + 0.7, 0.4)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", top=True, labeltop=True)  # a long plot is read from either end
        axes.spines["left"].set_visible(False)
        _ratio_axis(axes, [r["ratios"][r["peer"]] for r in compared])
        axes.grid(True, axis="x")

    return draw("forest", 7.0, height, paint, "Dots with intervals: speed-up over the official form")


def _heading(axes: Any, position: float, text: str) -> None:
    """A case's name over its rows, on a background that covers the grid."""
    axes.annotate(
        text,
        xy=(0, position),
        xycoords=axes.get_yaxis_transform(),
        xytext=(-105, 0),
        textcoords="offset points",
        fontsize=8,
        fontweight="bold",
        color=INK,
        va="center",
        annotation_clip=False,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
    )


def _ratio_axis(axes: Any, ratios: Sequence[dict[str, float]]) -> None:
    ticker = require("matplotlib.ticker")
    low = min(0.8, *(r["ci_low"] for r in ratios)) / 1.15
    high = max(1.25, *(r["ci_high"] for r in ratios)) * 1.15
    axes.set_xlim(low, high)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    wanted = [step * 10.0**power for power in range(-4, 5) for step in steps]
    inside = [value for value in wanted if low <= value <= high]
    axes.set_xticks(inside, [f"{value:g}×" for value in inside])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("times as fast as the official form (right of 1× is faster)")


def draw(name: str, width: float, height: float, paint: Callable[[Any], None], label: str) -> str:
    """The painted axes as an SVG element, told to a screen reader by its label; its numbers stand in a table."""
    return draw_many(name, width, height, 1, lambda rows: paint(rows[0]), label)


def draw_many(
    name: str, width: float, height: float, rows: int, paint: Callable[[Sequence[Any]], None], label: str
) -> str:
    """Axes above each other with one x axis. Ids do not meet those of another figure on the page."""
    matplotlib, figures = require("matplotlib"), require("matplotlib.figure")
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = figures.Figure(figsize=(width, height))
        paint(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    svg = _slim(buffer.getvalue(), f"f{zlib.crc32(name.encode()):x}")
    for value, variable in VARIABLES.items():
        svg = svg.replace(value, variable)
    size = re.compile(r'<svg ([^>]*?)width="([0-9.]+)pt" height="[^"]*"')
    return size.sub(rf'<svg role="img" aria-label="{label}" style="--width:\g<2>" \1', svg, count=1)


def _slim(text: str, prefix: str) -> str:
    """The SVG element with a third of its bytes: ids only where they are used, the page's own font, two decimals."""
    svg = text[text.index("<svg") :]
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg))
    short = {name: f"{prefix}-{index}" for index, name in enumerate(sorted(used))}
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{short[m[1]]}"' if m[1] in short else "", svg)
    svg = re.sub(r'(href="|url\()#([^")]+)', lambda m: f"{m[1]}#{short[m[2]]}", svg)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r"<g>\s*</g>\s*", "", svg)
    svg = _with_classes(svg, prefix)
    return re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><")


def _with_classes(svg: str, prefix: str) -> str:
    """Styles that several marks or lines share, as classes: a plot of samples repeats the same few for every point."""
    styled = re.compile(r'<(use|path) ([^>]*)style="([^"]*)"')
    counts = Counter(match[3] for match in styled.finditer(svg))
    names = {style: f"{prefix}c{i}" for i, style in enumerate(s for s, n in counts.items() if n > 2)}
    svg = styled.sub(
        lambda m: f'<{m[1]} {m[2]}class="{names[m[3]]}"' if m[3] in names else m[0], svg
    )
    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    return svg.replace("</style>", f"{rules}</style>", 1)
