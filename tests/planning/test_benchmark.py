"""benchmarks/planning.py: what it compares plans alike, and its figures are there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def benchmark_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "planning.py"
    spec = importlib.util.spec_from_file_location("planning_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "planning_benchmark", module)  # dataclasses look their module up
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


def test_both_forms_plan_alike(
    benchmark_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = benchmark_script.Case(48, 2, 2, side=2, samples=8, horizon=3, iterations=2, embed_dim=24)
    monkeypatch.setitem(benchmark_script.CASES, "tiny-h4", tiny)
    monkeypatch.setattr(sys, "argv", ["planning.py", "tiny-h4", "--rounds", "2", "--json", str(tmp_path / "found.json")])
    benchmark_script.main()
    decision, rollout = json.loads((tmp_path / "found.json").read_text())
    assert decision["same_elites"] and decision["largest_difference"] < 1e-5 and rollout["largest_difference"] < 1e-5
    printed = capsys.readouterr().out
    for result in (decision, rollout):
        assert result["name"] in printed
        assert result["lowest"] <= result["speed_up"] <= result["highest"] and result["slow_ms"] > 0
