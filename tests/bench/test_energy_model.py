"""The energy model: the arithmetic, the label, and that it stays apart from measurements."""

from __future__ import annotations

import json

import pytest

from jepa_kernels.bench.energy import EnergyReading, modelled


def test_bytes_and_flops_by_their_constants() -> None:
    found = modelled(flops=2e9, moved_bytes=1e6, dtype="fp32", device_type="cpu")
    assert found.flops_joules == pytest.approx((4.6e-3, 4.6e-3))  # 1e9 multiply-adds of 0.9 + 3.7 pJ
    assert found.bytes_joules == pytest.approx((1.3e-9 * 1e6 / 8, 2.6e-9 * 1e6 / 8))
    assert found.joules_low == pytest.approx(4.6e-3 + 1.625e-4)
    assert found.joules_high == pytest.approx(4.6e-3 + 3.25e-4)
    assert found.bytes_share == pytest.approx((1.625e-4 + 3.25e-4) / (2 * 4.6e-3 + 1.625e-4 + 3.25e-4))


def test_gpu_constants_are_one_byte_against_35_flops() -> None:
    found = modelled(flops=1.0, moved_bytes=1.0, dtype="bf16", device_type="cuda")
    assert found.bytes_joules[0] / found.flops_joules[0] == pytest.approx(35, abs=0.5)


def test_sixteen_bit_arithmetic_is_cheaper() -> None:
    fp32, bf16 = (modelled(1e9, 0.0, dtype, "cpu").joules_low for dtype in ("fp32", "bf16"))
    assert fp32 / bf16 == pytest.approx(2.3 / 0.75)


def test_no_work_is_no_division_by_zero() -> None:
    assert modelled(0.0, 0.0, "fp32", "cpu").bytes_share == 0.0


def test_model_says_that_it_is_none_and_cites() -> None:
    record = json.loads(json.dumps(modelled(1e9, 1e6, "bf16", "cuda").as_dict()))
    assert record["measured"] is False and "not measured" in record["label"]
    for name in ("byte_constant", "flop_constant"):
        assert record[name]["source"] and record[name]["scope"]
    assert not record.keys() & EnergyReading(None, "none").as_dict().keys()
