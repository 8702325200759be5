"""`benchmarks/step_losses.py`: its verdict, and one form run."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "step_losses.py"
CASE = "train_step/vjepa2-vittiny-8f-128-b2-bf16"
EXACT, OFFICIAL = [1.0, 0.9], [1.0, 0.91]


@pytest.fixture
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("ours, code", [([1.0, 0.92], 0), ([1.0, 0.95], 1), ([1.05, 0.9], 1)])
def test_the_verdict_is_twice_the_official_error_at_any_step(script, monkeypatch, capsys, ours, code):
    losses = {"exact": EXACT, "official": OFFICIAL, "ours": ours}
    forms = script["main"].__globals__
    monkeypatch.setitem(forms, "in_process", lambda case, form, steps: {"losses": losses[form], "rise_bytes": 2**20})
    monkeypatch.setattr(sys, "argv", ["step_losses.py", CASE])
    assert script["main"]() == code
    assert "| official | 1.00000 | 0.91000 | 1.0e-02 | 1 MiB |" in capsys.readouterr().out


def test_a_form_runs_and_tells_its_memory(script):
    found = script["run_form"](CASE, "ours", 1)
    assert 0 < found["losses"][0] < 2
    assert found["rise_bytes"] > 0
