"""The CUDA module on a machine without a driver: it loads, and says at its first launch what is missing."""

from __future__ import annotations

import pytest
import torch

from jepa_kernels import _native

pytestmark = [
    pytest.mark.skipif(_native.why_no_cuda() is not None, reason="the CUDA module is not built"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
]


def test_holds_both_operators_and_names_the_missing_driver():
    native, view = _native.cuda(), _native.view
    assert hasattr(native, "ema_update") and hasattr(native, "adamw_ema_step")
    table, chunks = torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="ema_update: launch failed: .*(driver|device)"):
        native.ema_update(view(table), view(chunks), 0, 0, -1, True, 0.5, None, False, 0, None, 64, 0)
