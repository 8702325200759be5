"""The support table is generated, and says `measured` only where a results folder backs it."""

from __future__ import annotations

from pathlib import Path

from jepa_kernels import cli, support
from jepa_kernels.backends import tuned_table
from jepa_kernels.ops.registry import all_operators

ROOT = Path(__file__).resolve().parents[1]


def test_readme_shows_the_generated_table(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split(support.BEGIN)[1].split(support.END)[0].strip()
    assert shown == support.markdown(), "run: jepa-kernels support --write README.md"


def test_write_replaces_the_block(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{support.BEGIN}\nold\n{support.END}\nafter\n", encoding="utf-8")
    assert cli.main(["support", "--write", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert support.markdown() in text and "old" not in text and text.startswith("before") and text.endswith("after\n")


def test_a_page_without_markers_is_refused(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing here", encoding="utf-8")
    assert cli.main(["support", "--write", str(page)]) == 2
    assert "must contain the line" in capsys.readouterr().err


def test_every_operator_and_backend_has_a_row():
    rows = {(row["operator"], row["backend"]) for row in support.rows()}
    assert rows == {(operator.name, backend) for operator in all_operators() for backend in operator.backends}


def test_automatic_gpu_backends_have_recorded_results():
    for architecture in support.ARCHITECTURES:
        for operator, order in tuned_table(architecture).get("automatic", {}).items():
            recorded = list((ROOT / "benchmarks/results").glob(f"*{architecture}*/results.jsonl"))
            assert recorded, f"{operator} runs {order} automatically on {architecture} without recorded results"


def test_gpu_check_without_a_gpu_says_so_and_exits_5(tmp_path, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["gpu-check", "--tests", str(ROOT / "tests"), "--output", str(tmp_path / "out")]) == 5
    assert "found none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_gpu_check_refuses_a_wrong_budget_or_tests_folder(tmp_path, capsys):
    assert cli.main(["gpu-check", "--budget", "soon"]) == 2
    assert cli.main(["gpu-check", "--tests", str(tmp_path / "absent")]) == 2
    assert "--budget 'soon' is not a duration" in capsys.readouterr().err
