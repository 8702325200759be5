"""Fixtures of the harness tests: toy cases in place of the real ones, and no measured ceilings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from jepa_kernels.bench import session, suite
from jepa_kernels.bench.cases import Case
from jepa_kernels.bench.video import Clip

from .toys import CEILINGS, toy_case

Run = Callable[..., tuple[int, Path]]


@pytest.fixture
def toy_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command line over toy cases; returns the exit code and the run's folder."""
    from jepa_kernels import cli

    monkeypatch.setattr(session, "measure_ceilings", lambda device, quick: CEILINGS)
    monkeypatch.setattr(session, "load_clip", lambda path: Clip(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "toy"))

    def run(cases: Sequence[Case] | None = None, *arguments: str) -> tuple[int, Path]:
        monkeypatch.setattr(suite, "all_cases", lambda: list(cases or [toy_case()]))
        output = tmp_path / "runs"
        code = cli.main(["bench", "run", "--quick", "--device", "cpu", "--output", str(output), *arguments])
        folders = sorted(output.glob("*"))
        return code, folders[-1] if folders else output

    return run
