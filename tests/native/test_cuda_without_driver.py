"""The CUDA module on a machine without a driver: it loads, and says at its first launch what is missing."""

from __future__ import annotations

import pytest
import torch

from jepa_kernels import _native

pytestmark = [
    pytest.mark.skipif(_native.why_no_cuda() is not None, reason="the CUDA module is not built"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
]


def test_holds_the_operators_and_names_the_missing_driver():
    native, view = _native.cuda(), _native.view
    assert hasattr(native, "ema_update") and hasattr(native, "adamw_ema_step")
    table, chunks = torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="ema_update: launch failed: .*(driver|device)"):
        native.ema_update(view(table), view(chunks), 0, 0, -1, True, 0.5, None, False, 0, None, 64, 0)


def attention_arguments(**changed):
    """Of a call that is in order, but for what is `changed`: tensors, or values."""
    q, k, v = (torch.zeros(2, 3, tokens, 64, dtype=torch.bfloat16) for tokens in (5, 9, 9))
    tables = {f"{side}_{kind}": torch.zeros(1, n, 64) for side, n in (("q", 5), ("k", 9)) for kind in ("cos", "sin")}
    arguments = {
        "q": q, "k": k, "v": v, "out": torch.zeros_like(q), "lse": torch.zeros(2, 3, 5), "rotated_k": torch.zeros_like(k),
        "key_lengths": None, "cu_seqlens": None, "max_seqlen": 0, "tokens_per_frame": 0, "query_frame_offset": 0, **tables,
        "scale": 0.125, "path": 0, "stream": 0, **changed,
    }  # fmt: skip
    return {name: _native.view(x) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


@pytest.mark.parametrize("plain", [False, True], ids=["rope", "plain"])
@pytest.mark.parametrize(("path", "asked"), [(0, "launch failed"), (1, "device")], ids=["warp", "warpgroup"])
def test_attention_names_the_missing_driver(plain, path, asked):
    changed = dict.fromkeys(("rotated_k", "q_cos", "q_sin", "k_cos", "k_sin")) if plain else {}
    asked = asked if plain else "launch failed"  # the keys are rotated first
    with pytest.raises(RuntimeError, match=f"masked_attention: {asked}: .*(driver|device)"):
        _native.cuda().masked_attention_forward(**attention_arguments(path=path, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(2, 3, 5, 64)}, "no CUDA kernel for float32"),
        ({"k": torch.zeros(2, 3, 9, 64, dtype=torch.float16)}, "k: expected bfloat16"),
        ({"v": torch.zeros(2, 3, 8, 64).bfloat16()}, "v: expected size 9"),
        ({"v": torch.zeros(2, 3, 9, 68).bfloat16()[..., :64]}, "rows of v must be contiguous and start at multiples of 16"),
        ({"v": torch.zeros(2, 3, 9, 72).bfloat16()[..., 4:68]}, "rows of v must be contiguous and start at multiples of 16"),
        ({"out": torch.zeros(2, 3, 6, 64).bfloat16()}, "out: expected size 5"),
        ({"lse": torch.zeros(2, 3, 10)[..., ::2]}, "lse must be contiguous"),
        ({"q_sin": None}, "all or none"),
        ({"k_cos": torch.zeros(3, 9, 64)}, "expected 1 or B tables"),
        ({"k_sin": torch.zeros(1, 8, 64)}, "k_cos and k_sin: expected size 9"),
        ({"key_lengths": torch.zeros(3, dtype=torch.int32)}, "key_lengths: expected size 2"),
        ({"key_lengths": torch.zeros(2, dtype=torch.int32), "tokens_per_frame": 1}, "more than one kind of mask"),
        ({"cu_seqlens": torch.zeros(2, dtype=torch.int32)}, "a batch of 1"),
        ({"tokens_per_frame": -1}, "tokens_per_frame -1 is out of range"),
        ({"path": 2}, r"path 2 is neither 0 \(warp\) nor 1 \(warpgroup\)"),
    ],
)
def test_attention_refuses_what_it_cannot_read(changed, message):
    with pytest.raises(ValueError, match=message):
        _native.cuda().masked_attention_forward(**attention_arguments(**changed))


def test_attention_names_a_head_dim_that_it_lacks():
    narrow = {name: torch.zeros(2, 3, tokens, 24).bfloat16() for name, tokens in (("q", 5), ("k", 9), ("v", 9), ("out", 5))}
    with pytest.raises(ValueError, match="no CUDA kernel for head dim 24"):
        _native.cuda().masked_attention_forward(**attention_arguments(**narrow))
