"""jepa_loss names what is wrong with a call."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk

PRED, TARGET, IDS = torch.zeros(2, 3, 8), torch.zeros(2, 5, 8), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(("arguments", "options", "error", "message"), [
    ((PRED, [1.0], IDS), {}, TypeError, "target is list, not a tensor"),
    ((PRED.int(), TARGET, IDS), {}, TypeError, "pred has dtype torch.int32; convert it"),
    ((PRED, TARGET, IDS.int()), {}, TypeError, "ids has dtype torch.int32"),
    ((PRED, TARGET.requires_grad_(False).clone().requires_grad_(), IDS), {}, ValueError, "target requires grad"),
    ((PRED, TARGET[0], IDS), {}, ValueError, r"target has shape \(5, 8\); expected \(B, N, D\)"),
    ((PRED[:, :2], TARGET, IDS), {}, ValueError, r"pred has shape \(2, 2, 8\); expected \(2, 3, 8\)"),
    ((PRED, TARGET), {}, ValueError, r"expected \(2, 5, 8\)"),
    ((PRED, TARGET, IDS[:1]), {}, ValueError, r"ids has shape \(1, 3\); expected \(2, K\)"),
    ((PRED, TARGET, []), {}, ValueError, "ids is an empty list"),
    (([PRED], TARGET, [IDS, IDS]), {}, ValueError, "1 predictions but 2 masks"),
    ((PRED, TARGET, [IDS, IDS[:, :2]]), {}, ValueError, r"ids\[1\] has shape \(2, 2\), ids\[0\] \(2, 3\)"),
    ((PRED, TARGET, IDS + 5), {}, ValueError, r"id 5 is out of range \[-1, 5\), at \[0, 0, 0\]"),
    ((PRED, TARGET, IDS - 2), {}, ValueError, r"id -2 is out of range \[-1, 5\)"),
    ((PRED, TARGET, IDS), {"kind": "huber"}, ValueError, "unknown kind 'huber'"),
    ((PRED, TARGET, IDS), {"kind": "l2", "power": 2.0}, ValueError, "only for kind='l1'"),
    ((PRED, TARGET, IDS), {"power": 0.5}, ValueError, "at least 1, got 0.5"),
    ((PRED, TARGET, IDS), {"kind": "smooth_l1", "beta": -1.0}, ValueError, "beta must be"),
    ((PRED, TARGET, IDS), {"kind": "smooth_l1", "beta": float("nan")}, ValueError, "beta must be"),
    ((PRED, TARGET, IDS), {"weights": torch.zeros(2, 4)}, ValueError, r"shape \(2, 4\); expected \(2, 3\)"),
    ((PRED, TARGET, IDS), {"norm": (torch.ones(7), None, 1e-6)}, ValueError, r"norm's weight has shape \(7,\)"),
    ((PRED, TARGET, IDS), {"norm": torch.nn.LayerNorm(8)}, ValueError, "norm's weight requires grad"),
])  # fmt: skip
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        jk.jepa_loss(*arguments, **options)


def test_ragged_ids_must_fit():
    target = torch.zeros(2, 5, 8)
    short = jk.RaggedIds(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 3], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"expected \(total,\) and \(3,\)"):
        jk.jepa_loss(torch.zeros(3, 8), target, short)
    falling = jk.RaggedIds(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 4, 3], dtype=torch.int32))
    with pytest.raises(ValueError, match="must rise from 0 to 3"):
        jk.jepa_loss(torch.zeros(3, 8), target, falling)
    good = jk.RaggedIds(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 3], dtype=torch.int32))
    with pytest.raises(ValueError, match="2 ragged masks need 2 predictions"):
        jk.jepa_loss(torch.zeros(6, 8), target, [good, good])
