"""Bad input to patch_embed: an error that names the value and what to do, before any kernel runs."""

from __future__ import annotations

import math

import pytest
import torch

import jepa_kernels as jk
from jepa_kernels.ops.patch_embed import looks_at_values

NAN, INF = math.nan, math.inf
IMAGE, IMAGE_WEIGHT = torch.zeros(2, 3, 32, 48), torch.zeros(8, 3, 16, 16)  # 6 patches an element
CLIP, CLIP_WEIGHT = torch.zeros(2, 3, 4, 32, 48), torch.zeros(8, 3, 2, 16, 16)  # 12 patches an element


def ids(*values):
    return torch.tensor(values, dtype=torch.int64)


def ragged(values, bounds, dtype=torch.int32):
    return jk.RaggedIds(ids(*values), torch.tensor(bounds, dtype=dtype))


@pytest.mark.parametrize(
    ("pixels", "weight", "options", "error", "message"),
    [
        (IMAGE.numpy(), IMAGE_WEIGHT, {}, TypeError, "pixels is ndarray, not a tensor"),
        (
            IMAGE.long(),
            IMAGE_WEIGHT,
            {},
            TypeError,
            "pixels has dtype torch.int64; convert it to one of uint8, float32",
        ),
        (IMAGE, IMAGE_WEIGHT.int(), {}, TypeError, "weight has dtype torch.int32"),
        (IMAGE[0], IMAGE_WEIGHT, {}, ValueError, r"pixels have shape \(3, 32, 48\); make them \(B, C, H, W\)"),
        (IMAGE, IMAGE_WEIGHT[0], {}, ValueError, r"weight has shape \(3, 16, 16\).* pass a weight \(D, C, ph, pw\)"),
        (IMAGE, IMAGE_WEIGHT.flatten(1), {}, ValueError, r"weight has shape \(8, 768\)"),
        (IMAGE, CLIP_WEIGHT, {}, ValueError, r"weight has shape \(8, 3, 2, 16, 16\).* pass a weight \(D, C, ph, pw\)"),
        (CLIP, IMAGE_WEIGHT, {}, ValueError, r"pass a weight \(D, C, pt, ph, pw\)"),
        (IMAGE[:, :2], IMAGE_WEIGHT, {}, ValueError, "weight takes 3 channels, pixels have 2"),
        (IMAGE[..., 1:], IMAGE_WEIGHT, {}, ValueError, "W = 47 is not a multiple of the patch size 16; crop or pad"),
        (IMAGE[:, :, 1:], IMAGE_WEIGHT, {}, ValueError, "H = 31 is not a multiple of the patch size 16"),
        (CLIP[:, :, 1:], CLIP_WEIGHT, {}, ValueError, "T = 3 is not a multiple of the patch size 2"),
        (IMAGE, IMAGE_WEIGHT.to("meta"), {}, ValueError, "weight is on meta, pixels on cpu; move them together"),
        (IMAGE, IMAGE_WEIGHT, {"bias": torch.zeros(7)}, ValueError, r"bias has shape \(7,\); expected \(8,\)"),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"bias": torch.zeros(8).half()},
            TypeError,
            "bias is torch.float16, weight torch.float32",
        ),
        (IMAGE, IMAGE_WEIGHT, {"mean": (1.0, 2.0)}, ValueError, r"mean has shape \(2,\); expected \(3,\)"),
        (IMAGE, IMAGE_WEIGHT, {"std": torch.ones(3, 1)}, ValueError, r"std has shape \(3, 1\); expected \(3,\)"),
        (IMAGE, IMAGE_WEIGHT, {"mean": 0.5}, TypeError, "mean is 0.5; give 3 numbers, one for each channel"),
        (IMAGE, IMAGE_WEIGHT, {"mean": (0.0, NAN, 0.0)}, ValueError, r"mean\[1\] is nan; give finite values"),
        (IMAGE, IMAGE_WEIGHT, {"std": (1.0, 0.0, 2.0)}, ValueError, r"std\[1\] is 0.0; give positive finite values"),
        (IMAGE, IMAGE_WEIGHT, {"std": (1.0, 1.0, -2)}, ValueError, r"std\[2\] is -2.0; give positive finite values"),
        (IMAGE, IMAGE_WEIGHT, {"std": (NAN, 1.0, 1.0)}, ValueError, r"std\[0\] is nan; give positive finite values"),
        (IMAGE, IMAGE_WEIGHT, {"std": (1.0, INF, 1.0)}, ValueError, r"std\[1\] is inf; give positive finite values"),
        (IMAGE, IMAGE_WEIGHT, {"std": torch.tensor([1.0, 0.0, 2.0])}, ValueError, r"std\[1\] is 0.0; give positive"),
        (IMAGE, IMAGE_WEIGHT, {"std": torch.tensor([1.0, 1.0, NAN])}, ValueError, r"std\[2\] is nan; give positive"),
        (IMAGE, IMAGE_WEIGHT, {"keep": 5}, TypeError, r"keep is 5; give None, an int64 tensor \(2, K\), a list"),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"mean": torch.ones(3, requires_grad=True)},
            ValueError,
            r"mean requires grad.* pass mean.detach\(\)",
        ),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"pos_embed": torch.zeros(5, 8)},
            ValueError,
            r"pos_embed has shape \(5, 8\); expected \(6, 8\) or",
        ),
        (IMAGE, IMAGE_WEIGHT, {"pos_embed": torch.zeros(2, 6, 8)}, ValueError, r"pos_embed has shape \(2, 6, 8\)"),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"keep": ids([0], [6])},
            ValueError,
            r"kept id 6 is out of range \[0, 6\), at \[0, 1, 0\] of keep",
        ),
        (IMAGE, IMAGE_WEIGHT, {"keep": ids([0], [-1])}, ValueError, r"kept id -1 is out of range \[0, 6\)"),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"keep": [ids([0], [1]), ids([3], [2**40])]},
            ValueError,
            r"kept id 1099511627776 .*at \[1, 1, 0\]",
        ),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"keep": ids([0], [1]).int()},
            TypeError,
            "keep has dtype torch.int32; convert it to one of int64",
        ),
        (IMAGE, IMAGE_WEIGHT, {"keep": ids([0])}, ValueError, r"keep has shape \(1, 1\); expected \(2, K\)"),
        (IMAGE, IMAGE_WEIGHT, {"keep": ids(0, 1)}, ValueError, r"keep has shape \(2,\); expected \(2, K\)"),
        (IMAGE, IMAGE_WEIGHT, {"keep": []}, ValueError, "keep is an empty list; pass None"),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"keep": [ids([0], [1]), ids([0, 1], [1, 2])]},
            ValueError,
            r"keep\[1\] has shape \(2, 2\), keep\[0\] \(2, 1\)",
        ),
        (IMAGE, IMAGE_WEIGHT, {"keep": [ids([0], [1]), [[0], [1]]]}, TypeError, r"keep\[1\] is list, not a tensor"),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"keep": ragged([0, 1, 2], [0, 3])},
            ValueError,
            r"cu_seqlens of shape \(2,\); expected \(total,\) and \(3,\)",
        ),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"keep": ragged([0, 1, 2], [0, 1, 4])},
            ValueError,
            r"cu_seqlens is \[0, 1, 4\]; it must rise from 0 to 3",
        ),
        (IMAGE, IMAGE_WEIGHT, {"keep": ragged([0, 1, 2], [0, 4, 3])}, ValueError, "it must rise from 0 to 3"),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"keep": ragged([0, 1, 2], [0, 1, 3], torch.int64)},
            TypeError,
            "keep.cu_seqlens has dtype torch.int64",
        ),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"keep": ragged([0, 6, 2], [0, 1, 3])},
            ValueError,
            r"kept id 6 is out of range \[0, 6\), at \[1\] of keep",
        ),
    ],
)
def test_names_the_value(pixels, weight, options, error, message):
    with pytest.raises(error, match=f"patch_embed: .*{message}" if not message.startswith("patch_embed") else message):
        jk.patch_embed(pixels, weight, **options)


def test_forced_backend_without_a_kernel_says_why():
    with jk.backend("cuda"), pytest.raises(jk.BackendError, match="cuda kernels need CUDA tensors, got cpu"):
        jk.patch_embed(IMAGE, IMAGE_WEIGHT)
    with (
        jk.backend("triton"),
        pytest.raises(jk.BackendError, match="triton kernels need a CUDA tensor|triton is not installed"),
    ):
        jk.patch_embed(IMAGE, IMAGE_WEIGHT)


def test_bytes_cannot_ask_for_a_gradient():
    """torch itself refuses, so no call of ours ever sees such pixels."""
    with pytest.raises(RuntimeError, match="only Tensors of floating point"):
        jk.patch_embed(IMAGE.to(torch.uint8).requires_grad_(), IMAGE_WEIGHT)


def test_values_on_a_gpu_are_looked_at_on_request(monkeypatch):
    monkeypatch.delenv("JEPA_KERNELS_CHECK", raising=False)
    assert looks_at_values(torch.device("cpu")) and not looks_at_values(torch.device("cuda"))
    monkeypatch.setenv("JEPA_KERNELS_CHECK", "1")
    assert looks_at_values(torch.device("cuda"))


@pytest.mark.gpu
def test_rows_on_a_gpu_are_checked_on_request(monkeypatch):
    pixels, weight, keep = IMAGE.cuda(), IMAGE_WEIGHT.cuda(), ids([0], [6]).cuda()
    embed = torch.compile(jk.patch_embed, fullgraph=True, backend="aot_eager")
    monkeypatch.delenv("JEPA_KERNELS_CHECK", raising=False)
    assert embed(pixels, weight, keep=keep).isnan().flatten(1).all(1).tolist() == [False, True]
    monkeypatch.setenv("JEPA_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match="kept id 1, counted over all of keep, is out of range"):
        embed(pixels, weight, keep=keep)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("bounds", [[0, 1, 2], [1, 2, 3], [0, 4, 3]], ids=["short", "late", "falling"])
def test_compiled_call_refuses_the_bounds_of_ragged_ids(bounds):
    def embed_kept(keep):
        return jk.patch_embed(IMAGE, IMAGE_WEIGHT, keep=keep)

    embed = torch.compile(embed_kept, fullgraph=True, backend="aot_eager")
    assert embed(ragged([0, 1, 2], [0, 1, 3])).shape == (3, 8)
    with pytest.raises(ValueError, match="cu_seqlens do not rise from 0 to the number of ids"):
        embed(ragged([0, 1, 2], bounds))
