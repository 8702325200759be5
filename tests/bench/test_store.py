"""A run's folder survives torn lines and killed processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_kernels.bench.errors import BenchInputError
from jepa_kernels.bench.store import RESULTS, RunStore, read_environment, read_results, write_atomic

WRITER = """
import sys, os, time
from pathlib import Path
from jepa_kernels.bench.store import RunStore
store = RunStore(Path(sys.argv[1]))
for cell in range(1000):
    store.append({"cell": cell})
    print(cell, flush=True)
    if cell == 5:
        time.sleep(60)
"""


def test_records_come_back_in_order(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path)
    for cell in range(3):
        store.append({"cell": cell, "text": "µ\n</script>"})
    store.close()
    assert [r["cell"] for r in read_results(store.folder)] == [0, 1, 2]


def test_every_record_written_before_sigkill_is_there(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "5":
                break
        process.send_signal(signal.SIGKILL)
    assert [r["cell"] for r in read_results(tmp_path)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_torn_last_line_is_passed_over(tmp_path: Path, cut: int) -> None:
    lines = json.dumps({"cell": 0}) + "\n" + json.dumps({"cell": 1, "µ": "x"}, ensure_ascii=False) + "\n"
    (tmp_path / RESULTS).write_bytes(lines.encode()[:-cut])
    found = [r["cell"] for r in read_results(tmp_path)]
    assert found == ([0, 1] if cut == 1 else [0])  # without its newline a whole record is still a record


def test_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text('{"cell": 0}\n{"cell\n{"cell": 2}\n')
    with pytest.raises(BenchInputError, match="line 2 is broken"):
        read_results(tmp_path)


def test_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchInputError, match="holds no benchmark run"):
        read_results(tmp_path)
    with pytest.raises(BenchInputError, match="holds no benchmark run"):
        read_environment(tmp_path)


def test_nan_is_refused_because_json_has_none(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        store.append({"value": float("nan")})


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\udcff")
    assert path.read_text() == "old"


def test_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchInputError, match="choose another with --output"):
        RunStore.create(tmp_path / "file")
