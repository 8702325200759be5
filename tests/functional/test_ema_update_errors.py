"""Bad input to ema_update_: a named error before anything is changed."""

from __future__ import annotations

import math

import pytest
import torch

import jepa_kernels as jk


@pytest.mark.parametrize(
    ("targets", "online", "momentum", "options", "error", "message"),
    [
        ([torch.zeros(2)], [], 0.5, {}, ValueError, "1 targets but 0 online"),
        ([torch.zeros(2)], [torch.zeros(3)], 0.5, {}, ValueError, r"target 0 has shape \(2,\)"),
        ([torch.zeros(2)], [torch.zeros(2)], 1.5, {}, ValueError, "got 1.5"),
        ([torch.zeros(2)], [torch.zeros(2)], math.nan, {}, ValueError, "got nan"),
        ([torch.zeros(2)], [torch.zeros(2)], "0.5", {}, ValueError, "got 0.5"),
        ([torch.zeros(2, requires_grad=True)], [torch.zeros(2)], 0.5, {}, ValueError, "target 0 requires grad"),
        ([torch.zeros(2, dtype=torch.int32)], [torch.zeros(2)], 0.5, {}, TypeError, "target 0 has dtype torch.int32"),
        ([torch.zeros(2)], [torch.zeros(2, dtype=torch.bool)], 0.5, {}, TypeError, "online 0 has dtype torch.bool"),
        ([torch.zeros(2)], [[0.0, 0.0]], 0.5, {}, TypeError, "online 0 is list"),
        ([torch.zeros(2)], [torch.zeros(2, device="meta")], 0.5, {}, ValueError, "online 0 is on meta"),
        (
            [torch.zeros(2)],
            [torch.zeros(2)],
            0.5,
            {"shadows": [torch.zeros(2)]},
            TypeError,
            "shadow 0 is torch.float32",
        ),
        (
            [torch.zeros(2)],
            [torch.zeros(2)],
            0.5,
            {"shadows": [torch.zeros(3).half()]},
            ValueError,
            r"shadow 0 has shape \(3,\)",
        ),
        ([torch.zeros(2)], [torch.zeros(2)], 0.5, {"seed": -1}, ValueError, "got -1"),
    ],
)
def test_names_the_value_and_changes_nothing(targets, online, momentum, options, error, message):
    before = [target.detach().clone() for target in targets]
    with pytest.raises(error, match=message):
        jk.ema_update_(targets, online, momentum, **options)
    assert all(torch.equal(a.detach(), b) for a, b in zip(targets, before, strict=True))


def test_second_pair_wrong_leaves_the_first_untouched():
    first = torch.zeros(2)
    with pytest.raises(ValueError, match="target 1 has shape"):
        jk.ema_update_([first, torch.zeros(2)], [torch.ones(2), torch.ones(3)], 0.5)
    assert torch.equal(first, torch.zeros(2))


def test_shared_memory_is_refused():
    tensor = torch.zeros(2)
    with pytest.raises(ValueError, match="target 0 shares memory"):
        jk.ema_update_([tensor], [tensor], 0.5)
    whole = torch.zeros(10)
    with pytest.raises(ValueError, match="target 0 shares memory"):
        jk.ema_update_([whole[:6]], [whole[4:]], 0.5)
    jk.ema_update_([whole[:5]], [whole[5:]], 0.5)  # neighbours in one storage
