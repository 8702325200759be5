"""`jepa-kernels patch-report`: the counts, and mistakes of the user."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa_kernels import cli
from jepa_kernels.integrations.core import patch
from jepa_kernels.integrations.estimate import comparison, measure

from .official import vjepa2

FACTORIES = """
import torch
from tests.integrations.official.vjepa2 import VisionTransformer

def model():
    return VisionTransformer()

def both():
    return VisionTransformer(), (torch.randn(1, 3, 4, 32, 32), torch.tensor([[0, 3]]))

def neither():
    return 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_counts_of_a_linear_layer():
    work = measure(nn.Linear(8, 16), torch.zeros(4, 8), 1e9, 1e9)
    assert work.kernels == 1  # the transposition of the weight is a view
    assert work.flops == 2 * 4 * 8 * 16
    assert work.bytes == 4 * (4 * 8 + 8 * 16 + 16 + 4 * 16)
    assert work.seconds == pytest.approx(max(work.flops, work.bytes) / 1e9)


def test_the_patched_attention_counts_the_same_products():
    attention = vjepa2.RoPEAttention(64, 2, grid_size=2).eval()
    x = torch.randn(1, 8, 64)
    before = measure(attention, x, 1e12, 1e10)
    patch(attention)
    after = measure(attention, x, 1e12, 1e10)
    assert after.flops == before.flops == 2 * 8 * 64 * 64 * 4 + 4 * 2 * 8 * 8 * 32
    assert after.kernels < before.kernels / 4 and after.bytes < before.bytes
    assert f"{before.kernels / after.kernels:.2f}x" in comparison(before, after)


def test_the_command_prints_what_is_replaced_and_the_counts(factories, capsys):
    assert cli.main(["patch-report", "factories:both", "--gflops", "100", "--bandwidth", "20"]) == 0
    out = capsys.readouterr().out
    assert "2 x vjepa2 RoPEAttention" in out and "roofline, ms" in out and "at 100 GFLOP/s and 20.0 GB/s" in out
    assert cli.main(["patch-report", "factories:model"]) == 0
    assert "return (model, inputs) from the factory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("factories", "is not MODULE:FACTORY"),
        ("factories:absent", "has no attribute 'absent'"),
        ("absent_module:build", "No module named 'absent_module'"),
        ("factories:neither", "returned a int; return a model"),
    ],
)
def test_mistakes_are_one_line(factories, capsys, factory, message):
    assert cli.main(["patch-report", factory]) == cli.USAGE
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
