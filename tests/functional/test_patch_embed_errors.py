"""Bad input to patch_embed: an error that names the value and what to do, before any kernel runs."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk

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
        (IMAGE.long(), IMAGE_WEIGHT, {}, TypeError, "pixels has dtype torch.int64; convert it to one of uint8, float32"),
        (IMAGE, IMAGE_WEIGHT.int(), {}, TypeError, "weight has dtype torch.int32"),
        (IMAGE[0], IMAGE_WEIGHT, {}, ValueError, r"pixels have shape \(3, 32, 48\); make them \(B, C, H, W\)"),
        (IMAGE, CLIP_WEIGHT, {}, ValueError, r"weight has shape \(8, 3, 2, 16, 16\).* pass a weight \(D, C, ph, pw\)"),
        (CLIP, IMAGE_WEIGHT, {}, ValueError, r"pass a weight \(D, C, pt, ph, pw\)"),
        (IMAGE[:, :2], IMAGE_WEIGHT, {}, ValueError, "weight takes 3 channels, pixels have 2"),
        (IMAGE[..., 1:], IMAGE_WEIGHT, {}, ValueError, "W = 47 is not a multiple of the patch size 16; crop or pad"),
        (IMAGE[:, :, 1:], IMAGE_WEIGHT, {}, ValueError, "H = 31 is not a multiple of the patch size 16"),
        (CLIP[:, :, 1:], CLIP_WEIGHT, {}, ValueError, "T = 3 is not a multiple of the patch size 2"),
        (IMAGE, IMAGE_WEIGHT.to("meta"), {}, ValueError, "weight is on meta, pixels on cpu; move them together"),
        (IMAGE, IMAGE_WEIGHT, {"bias": torch.zeros(7)}, ValueError, r"bias has shape \(7,\); expected \(8,\)"),
        (IMAGE, IMAGE_WEIGHT, {"bias": torch.zeros(8).half()}, TypeError, "bias is torch.float16, weight torch.float32"),
        (IMAGE, IMAGE_WEIGHT, {"mean": (1.0, 2.0)}, ValueError, r"mean has shape \(2,\); expected \(3,\)"),
        (IMAGE, IMAGE_WEIGHT, {"std": torch.ones(3, 1)}, ValueError, r"std has shape \(3, 1\); expected \(3,\)"),
        (IMAGE, IMAGE_WEIGHT, {"std": (1.0, 0.0, 2.0)}, ValueError, r"std is \(1.0, 0.0, 2.0\).* must not be 0"),
        (IMAGE, IMAGE_WEIGHT, {"std": torch.tensor([1.0, 0.0, 2.0])}, ValueError, r"std is \[1.0, 0.0, 2.0\].* must not be 0"),
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
        (IMAGE, IMAGE_WEIGHT, {"keep": ids([0], [6])}, ValueError, r"kept id 6 is out of range \[0, 6\), at \[0, 1, 0\] of keep"),
        (IMAGE, IMAGE_WEIGHT, {"keep": ids([0], [-1])}, ValueError, r"kept id -1 is out of range \[0, 6\)"),
        (
            IMAGE,
            IMAGE_WEIGHT,
            {"keep": [ids([0], [1]), ids([3], [2**40])]},
            ValueError,
            r"kept id 1099511627776 .*at \[1, 1, 0\]",
        ),
        (IMAGE, IMAGE_WEIGHT, {"keep": ids([0], [1]).int()}, TypeError, "keep has dtype torch.int32; convert it to one of int64"),
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
    with jk.backend("cuda"), pytest.raises(jk.BackendError, match="patch_embed has no cuda kernel"):
        jk.patch_embed(IMAGE, IMAGE_WEIGHT)
    with jk.backend("triton"), pytest.raises(jk.BackendError, match="triton kernels need a CUDA tensor|triton is not installed"):
        jk.patch_embed(IMAGE, IMAGE_WEIGHT)
