"""docs/measuring.md: every command is one that exists, and the example of one's own model runs and is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from jepa_kernels import cli
from jepa_kernels.bench.store import MARKDOWN, read_results

from .conftest import Run

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "measuring.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
OURS = [line for line in COMMANDS if line.startswith("jepa-kernels")]
EXAMPLE = ROOT / "examples" / "bench_own_model.py"


@pytest.mark.parametrize("line", OURS)
def test_command_is_understood(line: str) -> None:
    words = [word.replace("*", "run") if word.startswith("runs/") else word for word in shlex.split(line)[1:]]
    options = cli.build_parser().parse_args(words)
    assert callable(options.handler)
    for word in words:
        assert not word.endswith(".py") or (ROOT / word).is_file()
    if "--suite" in words:
        assert (ROOT / "benchmarks" / "suites" / f"{options.suite}.toml").is_file()


def test_page_has_commands_of_every_step() -> None:
    assert {shlex.split(line)[2] for line in OURS if " bench " in line} >= {"list", "run", "compare", "profile", "history"}


def test_options_named_in_the_text_exist() -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", cli.build_parser().format_help()))
    for command in ("run", "compare", "profile", "history", "report", "list"):
        parser = cli.build_parser()
        (subparsers,) = (a for a in parser._actions if a.dest == "command")
        (actions,) = (a for a in subparsers.choices["bench"]._actions if a.dest == "action")  # type: ignore[index]
        known |= set(re.findall(r"--[a-z][a-z-]+", actions.choices[command].format_help()))
    for command in ("tune", "gpu-check"):
        known |= set(re.findall(r"--[a-z][a-z-]+", subparsers.choices[command].format_help()))  # type: ignore[index]
    known |= {"--benchmark-json"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known


def test_own_model_example_is_right_and_reported(toy_run: Run) -> None:
    """Both variants are checked against float64, in the forward and in every gradient."""
    torch.manual_seed(0)
    code, folder = toy_run(None, "--own", str(EXAMPLE), "--no-profile", "--time-budget", "30s")
    records = read_results(folder)
    assert code == 0, [r["error"] for r in records]
    assert [(r["case_id"], r["provider"]) for r in records] == [
        (f"model/two-blocks-{way}-bf16", provider)
        for way in ("forward", "train")
        for provider in ("torch-eager", "jk-attention")
    ]
    assert all(r["correctness"]["passed"] for r in records) and records[0]["work"]["flops"] > 0
    assert "## Whole steps" in (folder / MARKDOWN).read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cases = 1", "TypeError"),
        ("def cases():\n    return []", "must return a list of cases"),
        ("def cases():\n    return [1]", "must return a list of cases"),
        ("import no_such_module", "No module named 'no_such_module'"),
        (
            "from jepa_kernels.bench.cases import model_case\ndef cases():\n    return [model_case('x', None, None, {})]",
            "has no variants",
        ),
    ],
)
def test_mistakes_in_an_own_file_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    own = tmp_path / "own.py"
    own.write_text(text)
    assert cli.main(["bench", "list", "--own", str(own)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
