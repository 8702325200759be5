"""docs/surprise.md: its code runs, its commands run at a tiny size; and the benchmark's figures are there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from jepa_kernels import cli

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "surprise.md").read_text()
COMMANDS = [shlex.split(line)[1:] for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
TINY = {
    "train": ["--set", "model.encoder_depth=1", "--set", "data.batch_size=2", "--stop-after", "2", "--device", "cpu"],
    "surprise-clips": ["--count", "2"],
    "surprise": ["--device", "cpu"],
}


def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    exec(compile("\n".join(blocks), "docs/surprise.md", "exec"), {})


def test_the_commands_run_and_the_benchmark_tells_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    jepa_kernels = [command for command in COMMANDS if command[0] in TINY]
    assert {command[0] for command in jepa_kernels} == set(TINY)
    for command in jepa_kernels:
        assert cli.main([*command, *TINY[command[0]]]) in (0, 130)  # 130: --stop-after
    assert (tmp_path / "runs/surprise/scored/surprise.png").is_file()
    found = json.loads((tmp_path / "runs/surprise/scored/surprise.json").read_text())
    assert len(found["starts"]) == 12
    benchmark, checkpoint = str(ROOT / "benchmarks" / "surprise.py"), "runs/surprise/model/checkpoint.pt"
    monkeypatch.setattr(sys, "argv", [benchmark, "accuracy", checkpoint, "--pairs", "1", "--json", "accuracy.json"])
    runpy.run_path(benchmark, run_name="__main__")
    told = json.loads((tmp_path / "accuracy.json").read_text())
    assert "pixels" in told["chosen"]["pixels"] and "pixels" not in told["chosen"]["model"]
    for who, shares in told["held_out"].items():
        for kind, share in shares.items():
            low, high = told["intervals"][who][kind]
            assert -1e-9 < low <= share + 1e-9 and share <= high + 1e-9 < 1 + 2e-9
    assert "teleport" in capsys.readouterr().out


def test_the_benchmark_compares_equal_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, output = str(ROOT / "benchmarks" / "surprise.py"), tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", [benchmark, "speed", "tutorial", "--rounds", "1", "--json", str(output)])
    runpy.run_path(benchmark, run_name="__main__")
    (found,) = json.loads(output.read_text())
    for other in ("single", "batched"):
        assert found[other]["largest_difference"] < 1e-5 and found[other]["ms"] > 0
    assert "shared" in capsys.readouterr().out


def test_options_named_in_the_text_exist() -> None:
    (commands,) = (action for action in cli.build_parser()._actions if action.dest == "command")
    text = re.sub(r"```.*?```|`python .*?`", "", PAGE, flags=re.DOTALL)
    known = set(re.findall(r"--[a-z][a-z-]+", commands.choices["surprise"].format_help()))  # type: ignore[index]
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known
