"""The trend of cases over many runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from jepa_kernels import cli
from jepa_kernels.bench.history import as_markdown, largest_step, read

from .runs import EQUAL, records, write

FEW = dict(list(EQUAL.items())[:1])
CASE = next(iter(FEW))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Eight runs on a machine whose speed varies; at the sixth the kernel becomes 30 % slower."""
    for index in range(8):
        seconds = {CASE: {**FEW[CASE], "jk-cpu": 1.3e-3 if index >= 5 else 1e-3}}
        cells = records(seconds, seed=index, shift=1 + 0.1 * (index % 3))
        write(tmp_path / f"run{index}", cells, datetime=f"2026-01-0{index + 1}T00:00:00+00:00")
    return tmp_path


def test_step_is_found_at_its_run_although_the_machine_varies(runs: Path) -> None:
    series = {s.provider: s for s in read(runs).series}
    ours = series["jk-cpu"]
    assert ours.step_at == "run5" and ours.step == pytest.approx(0.3, abs=0.03)
    assert ours.change == pytest.approx(0.3, abs=0.05) and len(ours.sparkline) == 8
    assert series["torch-b"].step_at is None


def test_runs_of_other_machines_and_broken_ones_are_passed_over(runs: Path) -> None:
    write(runs / "other", records(FEW, seed=1), device="cuda", datetime="2025-01-01T00:00:00+00:00")
    write(runs / "old", [], schema=1)
    found = read(runs)
    assert all(len(s.points) == 8 for s in found.series)
    assert len(found.passed_over) == 2 and "device differs" in " ".join(found.passed_over)
    assert "passed over: " in as_markdown(found)


@pytest.mark.parametrize(
    ("values", "index"),
    [([0, 0, 0, 1, 1, 1], 3), ([0.0, 0.1, 0.0, 0.1, 0.0], None), ([0, 1], None), ([0] * 9, None), ([0, 0, 0, 0, 1], 4)],
)
def test_largest_step(values: list[float], index: int | None) -> None:
    found, size = largest_step(values)
    assert found == index if any(values) else size == 0
    assert math.isfinite(size)


def test_command_prints_a_table_or_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "history", str(runs), "--filter", "toy/*"]) == 0
    assert f"| {CASE} | jk-cpu | 8 |" in capsys.readouterr().out
    assert cli.main(["bench", "history", str(runs), "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["series"]) == 4


def test_no_run_and_no_case_exit_2(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["bench", "history", str(tmp_path / "empty")]) == 2
    assert cli.main(["bench", "history", str(runs), "--filter", "none*"]) == 2
    assert "no case of these runs matches 'none*'" in capsys.readouterr().err
