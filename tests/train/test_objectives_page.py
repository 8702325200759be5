"""docs/objectives.md: its code runs, its table is the recorded run's, and the script behind its curve trains and probes."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from jepa_kernels.bench.store import read_environment, read_results
from jepa_kernels.train.config import load_config, packaged_names

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "objectives.md").read_text()
RUN = ROOT / "benchmarks" / "results" / "cpu-zen5-objectives"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 1
    namespace = {}
    exec(compile(blocks[0], "docs/objectives.md", "exec"), namespace)
    assert namespace["loss"].isfinite()


def test_the_configurations_of_the_page_are_packaged():
    named = re.findall(r"--config (\w+)", PAGE)
    assert len(named) == 5 and set(named) <= set(packaged_names())
    assert all(load_config(name).model.family == name.removesuffix("_tiny") for name in named)


def test_the_table_is_that_of_the_recorded_run():
    table = script("objectives_table")
    found = table.block(read_results(RUN), read_environment(RUN))
    assert f"{table.BEGIN}\n{found}\n{table.END}" in PAGE
    rows = [line for line in found.splitlines() if line.startswith("| ") and "²" in line]
    assert len(rows) == 7 and all("–" in row for row in rows)  # no counter of energy here: a dash, and the reason below
    assert "Energy: no RAPL" in found


def test_the_table_of_the_curve_is_that_of_its_numbers():
    curve = script("objectives_curve")
    found = json.loads((RUN.with_name(RUN.name + "-curve") / "curves.json").read_text())
    assert "\n".join([curve.BEGIN, *curve.table(found), curve.END]) in PAGE and len(found) == 5


def test_the_curve_trains_probes_and_draws(tmp_path, capsys):
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    curve = script("objectives_curve")
    files = ["--json", str(tmp_path / "curve.json"), "--plot", str(tmp_path / "curve.svg")]
    small = ["data.batch_size=4", "model.encoder_width=48", "model.encoder_depth=1"]
    sets = [word for setting in small for word in ("--set", setting)]
    curve.main(["mae", "vicreg", "--steps", "2", "--set", "head.hidden_dim=16", *sets, *files])
    found = json.loads((tmp_path / "curve.json").read_text())
    assert [each["objective"] for each in found] == ["mae", "vicreg"]
    for each in found:
        first, last = each["points"]
        assert (first["step"], first["seconds"], last["step"]) == (0, 0.0, 2) and last["seconds"] > 0
        assert each["joules"] is None and each["joules_reason"] and each["chance"] == pytest.approx(1 / 14)
        assert 0 <= last["linear"] <= 1 and last["effective_rank"] > 0
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    assert capsys.readouterr().out.count("| MAE |") == 1
