"""Bad input to adamw_ema_: a named error before anything is changed."""

from __future__ import annotations

import math

import pytest
import torch

import jepa_kernels as jk


def lists(**changes):
    return {
        "params": [torch.zeros(2)],
        "grads": [torch.ones(2)],
        "exp_avgs": [torch.zeros(2)],
        "exp_avg_sqs": [torch.zeros(2)],
        "steps": [torch.zeros(())],
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"grads": []}, ValueError, "1 params but 0 grads"),
        ({"grads": [torch.ones(3)]}, ValueError, r"grads\[0\] has shape \(3,\)"),
        ({"grads": [None]}, TypeError, r"grads\[0\] is NoneType"),
        ({"grads": [torch.ones(2, dtype=torch.int32)]}, TypeError, r"grads\[0\] has dtype torch.int32"),
        ({"exp_avgs": [torch.zeros(2, device="meta")]}, ValueError, r"exp_avgs\[0\] is on meta"),
        ({"steps": [torch.zeros(2)]}, ValueError, r"steps\[0\] has 2 elements"),
        ({"targets": [torch.zeros(3)]}, ValueError, r"targets\[0\] has shape \(3,\)"),
        ({"targets": [torch.zeros(2, requires_grad=True)]}, ValueError, r"targets\[0\] requires grad"),
        ({"targets": [torch.zeros(2), torch.zeros(2)]}, ValueError, "1 params but 2 targets"),
        ({"target_shadows": [torch.zeros(2).bfloat16()]}, ValueError, r"target_shadows\[0\] is given without"),
        ({"param_shadows": [torch.zeros(2)]}, TypeError, r"param_shadows\[0\] has dtype torch.float32"),
        ({"momentum": 1.5}, ValueError, "momentum must lie in .0, 1., got 1.5"),
        ({"momentum": math.nan}, ValueError, "got nan"),
        ({"momentum": torch.tensor(2.0)}, ValueError, "got 2.0"),
        ({"momentum": torch.tensor([0.5, 0.5])}, ValueError, "momentum tensor must hold one"),
        ({"lr": -1.0}, ValueError, "lr must be finite and not negative, got -1.0"),
        ({"lr": math.nan}, ValueError, "lr must be finite"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must be two numbers in \[0, 1\)"),
        ({"eps": -1e-8}, ValueError, "eps must be finite"),
        ({"weight_decay": math.inf}, ValueError, "weight_decay must be finite"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be positive"),
    ],
)
def test_names_the_value_and_changes_nothing(changes, error, message):
    arguments = lists(**changes)
    with pytest.raises(error, match=message):
        jk.adamw_ema_(**arguments)
    assert torch.equal(arguments["params"][0], torch.zeros(2))
    assert float(arguments["steps"][0].sum()) == 0


def test_shared_memory_is_refused():
    param = torch.zeros(2)
    with pytest.raises(ValueError, match=r"params\[0\] shares memory with targets\[0\]"):
        jk.adamw_ema_(**lists(params=[param], targets=[param]))
