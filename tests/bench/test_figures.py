"""Every figure has a table, and the table says the numbers of the records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jepa_kernels.bench import figures, report, summary
from jepa_kernels.bench.markdown import table

from .runs import EQUAL, environment, records, write
from .toys import CEILINGS

PROFILE = {
    "case_id": "train_step/toy-fp32", "provider": "jk-cpu", "device": "cpu", "calls": 3, "wall_s": 0.01,
    "parts": {"forward": 0.004, "backward": 0.005, "python and idle": 0.001},
    "operators": [{"name": "aten::mm", "part": "forward", "calls": 2.0, "seconds": 0.003, "share": 0.5}],
    "advice": ["50%: do this"], "trace": "trace.json.gz", "tools": {},
}  # fmt: skip


def cells() -> list[dict[str, Any]]:
    """Twelve timed cells with energy, memory and a machine timeline."""
    found = records(dict(list(EQUAL.items())[:3]), seed=1, rounds=12)
    for index, r in enumerate(found):
        r["operator"] = "train_step" if r["case_id"].startswith("toy/case0") else "toy"
        r["work"] = {**r["work"], "flops": 8 * 10 ** int(r["case_id"][8])}
        r["energy"] = {"joules_per_call": 0.01 * (index + 1), "reason": None, "windows": []}
        r["timeline"] = {
            "t_s": [0.0, 1.0, 2.0], "phase": ["round", "round", "idle"], "power_w": [70.25, 71.5, 20.0],
            "cpu_mhz": [3000.0, None, 1000.0], "windows": [{"phase": "idle", "begin_s": 1.5, "end_s": 2.5}],
        }  # fmt: skip
    return found


def every_figure(found: list[dict[str, Any]]) -> list[figures.Figure]:
    single = [
        figures.steps([PROFILE]), figures.memory(found), figures.forest(found), figures.pareto(found),
        figures.roofline(found, CEILINGS.as_dict()),
    ]  # fmt: skip
    assert None not in single
    return [*[f for f in single if f], *figures.scaling(found), *figures.strips(found), *figures.timelines(found)]


def test_tables_say_the_numbers_of_the_records() -> None:
    found = cells()
    text = {f.name: {cell for row in f.rows for cell in row} for f in every_figure(found)}
    for r in found:
        slug = r["case_id"].replace("/", "-")
        assert summary.speed_up(r["ratios"].get(r["peer"])) in text["forest"] | {summary.MISSING}
        assert summary.seconds(r["stats"]["median"]) in text["pareto"]
        assert summary.joules(r["energy"]["joules_per_call"]) in text["pareto"]
        assert summary.giga(r["rates"]["flops_per_s"]) in text["roofline"]
        assert summary.mebibytes(r["memory"]["peak_bytes"]) in text["memory"]
        assert {summary.seconds(s) for s in r["samples"]["seconds"]} <= text[f"strip-{slug}"]
        assert {"70.25", "71.5", "3000", summary.MISSING} <= text[f"timeline-{slug}"]
    assert {summary.seconds(v) for v in PROFILE["parts"].values()} <= text["steps"]  # type: ignore[attr-defined]


def test_idle_rows_stand_once_although_every_provider_has_them() -> None:
    (first, *_) = figures.timelines(cells())
    assert [row[1:3] for row in first.rows].count(["idle", "none"]) == 1


@pytest.mark.parametrize("key", ["energy", "memory", "timeline", "samples"])
def test_figure_without_data_is_left_out(key: str) -> None:
    absent = {
        "energy": {"joules_per_call": None, "reason": "none"}, "memory": {"peak_bytes": None, "reason": "none"},
        "timeline": None, "samples": None,
    }  # fmt: skip
    found = [r | {key: absent[key]} for r in cells()]
    made = {"energy": figures.pareto(found), "memory": figures.memory(found)}
    made |= {"timeline": next(figures.timelines(found), None), "samples": next(figures.strips(found), None)}
    assert [name for name, figure in made.items() if figure is None] == [key]


def test_page_has_every_section_and_each_plot_its_table(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", cells())
    (folder / "profiles" / "a").mkdir(parents=True)
    (folder / "profiles" / "a" / "profile.json").write_text(json.dumps(PROFILE))
    (folder / "profiles" / "torn").mkdir()
    (folder / "profiles" / "torn" / "profile.json").write_text("{")
    html = report.write_report(folder).read_text()
    assert set(re.findall(r'<h2 id="([a-z]+)"', html)) == {"steps", "overview", "results", "detail", "cases", "environment"}
    assert html.count("<svg") == html.count("as a table</summary>") == len(every_figure(cells()))
    assert "50%: do this" in html and (folder / "report.md").read_text().count("50%: do this") == 1
    links = re.findall(r'href="#([^"]+)"', html)
    assert all(f'id="{link}"' in html for link in links)


def test_too_large_a_page_leaves_samples_then_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = report.render(cells(), environment(), "run", complete=True)
    monkeypatch.setattr(report, "MAX_BYTES", len(whole.encode()) - 1)
    without_samples = report.render(cells(), environment(), "run", complete=True)
    assert "Samples in order" in without_samples and len(without_samples) < len(whole)
    monkeypatch.setattr(report, "MAX_BYTES", len(whole.encode()) // 2)
    least = report.render(cells(), environment(), "run", complete=True)
    assert "Samples in order" not in least and "Roofline" in least


def test_hundred_cells_stay_below_two_megabytes() -> None:
    many = {f"toy/case{i}-fp32": EQUAL["toy/case0-fp32"] for i in range(25)}
    assert len(report.render(records(many, seed=1), environment(), "run", complete=True).encode()) <= report.MAX_BYTES


def test_bars_in_a_markdown_cell_do_not_end_it() -> None:
    assert table(("a",), [["x|y"]])[2] == "| x\\|y |"
