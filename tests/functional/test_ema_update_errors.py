"""Bad input to ema_update_: a named error before anything is changed."""

from __future__ import annotations

import math

import pytest
import torch

import jepa_kernels as jk
from jepa_kernels import _native
from jepa_kernels.ops import ema_update as operator


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


def flat(size=24):
    return torch.arange(float(size))


def aliased():
    """(targets, online, shadows, what the error names)"""
    base, other = flat(), torch.zeros(8)
    halves = torch.zeros(24, dtype=torch.bfloat16)
    yield [other, other], [flat(8), flat(8)], None, "target 0 shares memory with target 1"
    yield [base[:8], base[7:15]], [flat(8), flat(8)], None, "target 0 shares memory with target 1"
    yield [base[:8], other], [flat(8), base[4:12]], None, "target 0 shares memory with online 1"
    yield [base[::2], base[4:12]], [flat(12), flat(8)], None, "target 0 shares memory with target 1"
    yield [flat(8)], [flat(8)], [base.view(torch.bfloat16)[:8]], None
    yield [other], [base[:8]], [base.view(torch.bfloat16)[4:12]], "shadow 0 shares memory with online 0"
    yield [base[:8], other], [flat(8)] * 2, [halves[:8], base.view(torch.bfloat16)[4:12]], "target 0 .* shadow 1"
    yield [flat(8), other], [flat(8)] * 2, [halves[:8], halves[7:15]], "shadow 0 shares memory with shadow 1"
    yield [flat(1).expand(8)], [flat(8)], None, r"target 0 has elements that share memory \(shape \(8,\), strides \(0,\)"
    yield [flat().as_strided((4, 5), (3, 1))], [torch.ones(4, 5)], None, "target 0 has elements that share memory"
    yield [flat(8)], [flat(8)], [halves[:1].expand(8)], "shadow 0 has elements that share memory"
    matrix = flat().view(4, 6)
    yield [matrix[:, :2], matrix[:, 2:4]], [matrix[:, 4:], matrix[:, 4:]], None, None
    yield [base[::2], other], [base[1::2], base[1:9]], None, "target 0 shares memory with online 1"
    yield [flat().as_strided((4, 3), (5, 2))], [torch.ones(4, 3)], None, None
    yield [torch.zeros(0), torch.zeros(0), flat(8)], [torch.zeros(0), torch.zeros(0), flat(8)], None, None


@pytest.mark.parametrize("case", range(15))
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_memory_in_two_roles_is_refused_and_nothing_is_changed(case, backend):
    targets, online, shadows, message = list(aliased())[case]
    everything = [*targets, *online, *(shadows or [])]
    before = [tensor.clone() for tensor in everything]
    if backend == "cpu" and message is None and any(not operator._is_dense(target) for target in targets):
        backend = "reference"
    with jk.backend(backend):
        for _ in range(2):  # a refused call leaves no prepared call behind
            if message is None:
                jk.ema_update_(targets, online, 0.5, shadows=shadows)
                continue
            with pytest.raises(ValueError, match=message):
                jk.ema_update_(targets, online, 0.5, shadows=shadows)
            assert all(torch.equal(a, b) for a, b in zip(everything, before, strict=True))


@pytest.mark.parametrize(("target", "source", "message"), [
    ((1, 0, 4), (64, 0, 4), "address is not aligned to 4 bytes"),
    ((64, 0, 4), (0, 0, 4), "null address"),
    ((64, 0, -1), (64, 0, -1), "negative element count"),
    ((64, 0, 4), (64, 0, 5), "element counts differ"),
    ((64, 6, 4), (64, 0, 4), "target dtype int32 is not floating point"),
    ((64, 0, 4), (64, 99, 4), "online dtype unknown is not floating point"),
])  # fmt: skip
def test_the_binding_refuses_what_does_not_fit(target, source, message):
    with pytest.raises(ValueError, match=message):
        _native.cpu().EmaTensors([target], [source], [None])


def test_a_prepared_call_is_not_reused_for_another_split_of_the_same_tensors():
    a, b, c, d = (torch.rand(4) for _ in range(4))
    jk.ema_update_([a, b], [c, d], 0.5)
    before = [x.clone() for x in (a, b, c, d)]
    with pytest.raises(ValueError, match="online"):
        jk.ema_update_([a], [b, c, d], 0.5)
    assert all(torch.equal(x, y) for x, y in zip((a, b, c, d), before, strict=True))
