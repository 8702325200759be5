"""The tutorial runs, block by block, with settings small enough for a test."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from train_helpers import SMALL

from jepa_kernels import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    for module in ("PIL", "skimage", "av"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names, ran = {}, []
    for language, block in re.findall(r"^```(python|console)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), names)
            continue
        for line in block.splitlines():
            program, command, *arguments = shlex.split(line)
            assert program == "jepa-kernels"
            if command == "train" and "--dump-config" not in arguments:
                patch = () if "ijepa_tiny" in arguments else ("model.patch_size=8", "model.num_frames=4")
                arguments += [word for setting in (*SMALL, *patch) for word in ("--set", setting)]
            code = cli.main([command, *arguments])
            without = command == "export" and importlib.util.find_spec("safetensors") is None
            assert code == (2 if without else 0), f"{line}\n{capsys.readouterr().err}"
            ran.append(command)
    assert ran == ["train", "train", "probe", "train", "train", "train", "train", "export"]
    assert names["features"].shape == (1, 64, 48) and names["loss"] > 0
