"""Launches as Triton compiles them at run time: integers that are 1 become constants, and multiples of 16 are told apart."""

from __future__ import annotations

import types

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import jepa_kernels as jk
from jepa_kernels import backends
from jepa_kernels.ops import ema_update


class NoGpu:
    """Names a GPU to compile for. Its number is one that no machine has: kernels are kept by it."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 1 << 20

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compiled(monkeypatch):
    """Names of the kernels that calls of the Triton backends run: they are compiled, and not launched."""
    names: list[str] = []
    run = JITFunction.run

    def prepared(self, *arguments, grid, warmup, **options):
        names.append(self.__name__)
        return run(self, *arguments, grid=grid, warmup=True, **options)

    monkeypatch.setattr(JITFunction, "run", prepared)
    monkeypatch.setattr(backends, "why_no_triton", lambda device, dtypes: None)
    monkeypatch.setattr(driver, "_active", NoGpu())
    monkeypatch.setenv("JEPA_KERNELS_BACKEND", "triton")
    return names


@pytest.fixture
def keys(compiled, monkeypatch):
    """The same kernels by the keys of Triton's cache, without compiling them."""
    found: set[tuple[str, str]] = set()
    stub = types.SimpleNamespace()
    monkeypatch.setattr(JITFunction, "_do_compile", lambda self, key, *rest: found.add((self.__name__, key)) or stub)
    return found


def embed(rows):
    pixels, weight = torch.zeros(1, 3, 64, 64), torch.zeros(8, 3, 16, 16, requires_grad=True)
    jk.patch_embed(pixels, weight, keep=torch.zeros(1, rows, dtype=torch.int64)).sum().backward()


def embed_batch(batch):
    pixels, weight = torch.zeros(batch, 3, 48, 48, requires_grad=True), torch.zeros(8, 3, 16, 16)  # 9 patches each
    jk.patch_embed(pixels, weight).sum().backward()


def embed_pair(rows):
    pixels, weights = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [torch.zeros(8, 3, 16, 16) for _ in range(2)]
    jk.patch_embed_pair(pixels, weights[0], None, weights[1], None, keep=torch.zeros(1, rows, dtype=torch.int64))


def loss(rows):
    pred = torch.zeros(1, rows, 32, requires_grad=True)
    jk.jepa_loss(pred, torch.zeros(1, 9, 32), torch.zeros(1, rows, dtype=torch.int64)).backward()


def update(seed):
    ema_update._plan_triton([torch.zeros(9).bfloat16()], [torch.zeros(9)], [])(0.5, True, seed)


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (embed, (5, 1, 16, 5000)),
        (embed_batch, (5, 1, 16)),
        (embed_pair, (5, 1, 16)),
        (loss, (5, 1, 16)),
        (update, (0, 1, 7, 16, 2**31, 2**63 - 1)),
    ],
)
def test_numbers_that_change_from_call_to_call_mean_no_other_kernel(keys, call, values):
    call(values[0])
    first = set(keys)
    for value in values[1:]:
        call(value)
    assert first and keys == first


def adamw_of_one():
    lists = [[torch.zeros(1)] for _ in range(5)]
    jk.adamw_ema_(*lists, targets=[torch.zeros(1)], max_grad_norm=1.0)


def sigreg_of_one():
    jk.sigreg(torch.zeros(1, 1, requires_grad=True), num_slices=1, num_points=2, seed=0).backward()


def embed_of_one():
    pixels, weight = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)
    positions = torch.zeros(1, 1, requires_grad=True)
    jk.patch_embed(pixels, weight, keep=torch.zeros(1, 1, dtype=torch.int64), pos_embed=positions).sum().backward()


def loss_of_one():
    jk.jepa_loss(torch.zeros(1, 1, 1, requires_grad=True), torch.zeros(1, 1, 1)).backward()


def attention_of_one():
    q = torch.zeros(1, 1, 1, 2, requires_grad=True)
    jk.masked_attention(q, q, q, mask=torch.ones(1, 1, dtype=torch.bool), rope=jk.Rope3D(torch.zeros(1, 3))).sum().backward()


@pytest.mark.parametrize(
    ("call", "kernels"),
    [
        (adamw_of_one, {"sum_of_squares_kernel", "prepare_kernel", "adamw_ema_kernel"}),
        (sigreg_of_one, {"sigreg_forward_kernel", "sigreg_backward_kernel"}),
        (
            embed_of_one,
            {"forward_kernel", "backward_weight_kernel", "reduce_kernel", "sum_rows_kernel", "backward_pixels_kernel"},
        ),
        (loss_of_one, {"jepa_loss_forward_kernel", "jepa_loss_backward_kernel"}),
        (attention_of_one, {"rotate_kernel", "forward_kernel", "query_gradient_kernel", "key_gradient_kernel"}),
    ],
)
def test_sizes_of_one_compile(compiled, call, kernels):
    call()
    assert set(compiled) == kernels
