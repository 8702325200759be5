"""docs/planning.md: its code runs, its commands exist; and the example trains, plans and writes what the page says."""

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
PAGE = (ROOT / "docs" / "planning.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 5
    exec(compile("\n".join(blocks), "docs/planning.md", "exec"), {})
    assert (tmp_path / "world.pt").is_file()


def test_the_example_trains_evaluates_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's first command at a tiny size, then its second with what the first wrote."""
    example, *options = shlex.split(COMMANDS[0])[1:]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [example, *options, "--steps", "3", "--clips", "16", "--episodes", "1", "--samples", "16"])
    runpy.run_path(str(ROOT / example), run_name="__main__")
    found = json.loads((tmp_path / "runs" / "point_walls.json").read_text())
    assert found["steps"] == 3 and {"planned", "random", "straight"} <= found.keys()
    assert all(0.0 <= found[name]["success"] <= 1.0 for name in ("planned", "random", "straight"))
    command = shlex.split(COMMANDS[1])[1:]
    assert cli.main([*command, "--samples", "8", "--iterations", "1", "--topk", "2"]) == 0
    assert "the goal in" in capsys.readouterr().out


def test_options_named_in_the_text_exist() -> None:
    (commands,) = (action for action in cli.build_parser()._actions if action.dest == "command")
    known = set(re.findall(r"--[a-z][a-z-]+", commands.choices["plan"].format_help()))  # type: ignore[index]
    text = PAGE.replace(COMMANDS[0], "")
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known
