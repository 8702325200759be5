"""PyTorch's other attentions as providers: what they compute, and what is told where they cannot run."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from jepa_kernels.backends import BackendError
from jepa_kernels.bench import attention_peers
from jepa_kernels.bench.cases import Provider


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_sees_what_the_dense_mask_shows() -> None:
    q, k, v = torch.randn(3, 1, 2, 12, 16).unbind()
    frame = torch.arange(12) // 4
    want = functional.scaled_dot_product_attention(q, k, v, attn_mask=frame[:, None] >= frame[None, :])
    blocks = attention_peers.frame_causal_blocks(12, 4, torch.device("cpu"))
    assert torch.allclose(attention_peers.flex(q, k, v, blocks, compiled=False), want, atol=1e-5)


def test_every_sdpa_backend_is_a_provider_on_a_gpu_only() -> None:
    base = Provider("torch-sdpa", lambda x: x)
    found = attention_peers.sdpa_backends(base, torch.device("cuda"))
    assert [p.name for p in found] == [f"torch-sdpa-{n}" for n in ("flash", "efficient", "cudnn", "math")]
    assert attention_peers.sdpa_backends(base, torch.device("cpu")) == []
    assert attention_peers.flex_runs(torch.device("cuda")) is None
    assert "no backward on CPUs" in str(attention_peers.flex_runs(torch.device("cpu")))


def test_backend_that_cannot_run_is_unsupported_and_other_errors_stay() -> None:
    backend = attention_peers.BACKENDS["cudnn"]
    with pytest.raises(BackendError, match="SDPA has no CUDNN_ATTENTION kernel"), attention_peers.forced(backend):
        raise RuntimeError("No available kernel. Aborting execution.")
    with pytest.raises(BackendError, match="cuDNN has no plan"), attention_peers.forced(backend):
        raise RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built.")
    with pytest.raises(RuntimeError, match="out of luck"), attention_peers.forced(backend):
        raise RuntimeError("out of luck")


def test_math_backend_computes_attention() -> None:
    q = torch.randn(1, 2, 8, 16)
    with attention_peers.forced(attention_peers.BACKENDS["math"]):
        out = functional.scaled_dot_product_attention(q, q, q)
    assert torch.allclose(out, functional.scaled_dot_product_attention(q, q, q), atol=1e-5)
