"""Attention with RoPE and masks on Triton: plain launchers. Keys are rotated once, then one kernel attends."""

import math
from typing import Any

import torch
import triton

from .segments import head_dim_segments
from .launch import Launch, stride_arguments, stride_unit
from .masked_attention_forward import forward_kernel
from .masked_attention_tiles import forward_tile
from .rope import rotation

LOG2_E = math.log2(math.e)


def _capability(tensor):
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (9, 0)


def forward(q, k, v, out, lse, **extras):
    for launch in forward_launches(q, k, v, out, lse, capability=_capability(q), **extras):
        launch.run()


def forward_launches(
    q, k, v, out, lse, *, capability, bool_mask=None, key_lengths=None, cu_seqlens=None, max_seqlen=0, tokens_per_frame=0,
    query_frame_offset=0, q_cos=None, q_sin=None, k_cos=None, k_sin=None, scale):
    launches = []
    batch, heads, query_len, head_dim = q.shape
    if k_cos is not None:
        k, launch = rotation(k, k_cos, k_sin)
        launches.append(launch)
    tile, options = forward_tile(head_dim, q.dtype, query_len, k.shape[2], capability)
    unit = stride_unit(q, k, v, out, q_cos, q_sin)
    entries = batch if cu_seqlens is None else len(cu_seqlens)
    tiles = triton.cdiv(query_len if cu_seqlens is None else max_seqlen, tile["BLOCK_M"])
    mask = None if bool_mask is None else bool_mask.view(torch.uint8)
    args = {
        "q_ptr": q, "k_ptr": k, "v_ptr": v, "out_ptr": out, "lse_ptr": lse, "mask_ptr": mask,
        "key_lengths_ptr": key_lengths, "cu_seqlens_ptr": cu_seqlens, "cos_ptr": q_cos, "sin_ptr": q_sin,
        **stride_arguments("q", q, "bhn", unit), **stride_arguments("k", k, "bhn", unit), **stride_arguments("v", v, "bhn", unit),
        **stride_arguments("out", out, "bhn", unit),  **stride_arguments("mask", mask, "bhqk", 1),
        **stride_arguments("cos", q_cos, "bn", unit),  **stride_arguments("sin", q_sin, "bn", unit),
        "num_heads": heads, "query_len": query_len, "key_len": k.shape[2], "num_tiles": tiles, "num_sequences": entries - 1,
        "tokens_per_frame": tokens_per_frame, "query_frame_offset": query_frame_offset, "scale_log2": abs(scale) * LOG2_E,
        "HEAD_DIM": head_dim, "SEGMENTS": head_dim_segments(head_dim), "STRIDE_UNIT": unit,
        "FRAME_CAUSAL": tokens_per_frame > 0, "NEGATIVE_SCALE": scale < 0, **tile,
    }
    launches.append(Launch(forward_kernel, tiles * heads * entries, args, options))
    return launches
