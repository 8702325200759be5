"""The compile cases of masked attention: the launches of `forward` and `backward` on meta tensors, for what training uses."""

from __future__ import annotations

from dataclasses import replace

import torch

from . import tuned_tiles
from ._common import AotCase
from .launch import Launch
from .masked_attention import Extras, backward_launches, forward_launches

HEADS, TOKENS = 16, 1024
MASKS = ("dense", "frame_causal", "key_padding", "ragged", "bool")
SHORT = 48  # tokens; the tiles of short sequences
# (head dim, dtype, mask, RoPE, tokens). Frame-causal with RoPE has every code path but the boolean mask, so it stands for
# each head dim; the other masks are paired with the head dims of the models that use them.
QUICK = (
    (64, torch.bfloat16, "frame_causal", True, TOKENS),
    (80, torch.bfloat16, "bool", True, TOKENS),
)
FULL = (
    *QUICK,
    (24, torch.bfloat16, "dense", False, TOKENS),
    (32, torch.float16, "ragged", True, TOKENS),
    (64, torch.bfloat16, "dense", False, SHORT),
    (64, torch.float16, "bool", False, TOKENS),
    (64, torch.float32, "key_padding", True, TOKENS),
    (88, torch.bfloat16, "frame_causal", True, TOKENS),
    (96, torch.float16, "key_padding", True, TOKENS),
    (80, torch.bfloat16, "ragged", True, SHORT),
    (80, torch.bfloat16, "frame_causal", True, TOKENS),
    (104, torch.bfloat16, "frame_causal", True, TOKENS),
    (128, torch.bfloat16, "bool", True, TOKENS),
    (128, torch.float16, "frame_causal", True, TOKENS),
    (128, torch.float32, "bool", True, TOKENS),
    (256, torch.bfloat16, "frame_causal", True, TOKENS),
    (256, torch.bfloat16, "frame_causal", True, SHORT),
    (256, torch.bfloat16, "bool", True, TOKENS),
    (256, torch.float32, "frame_causal", True, TOKENS),
    *((head_dim, torch.bfloat16, "ragged", True, TOKENS) for head_dim in (64, 80, 88, 104, 128, 256)),
    *((head_dim, torch.bfloat16, "ragged", True, SHORT) for head_dim in (64, 128, 256)),
    *((head_dim, torch.float32, "ragged", True, TOKENS) for head_dim in (64, 128, 256)),
)


def aot_cases(quick: bool = False) -> list[AotCase]:
    """Cases of the ahead-of-time gate: forward, both backward kernels and the rotation of each configuration above, once each."""
    cases: dict[tuple[str, ...], AotCase] = {}
    for head_dim, dtype, mask, rope, tokens in (*(QUICK if quick else FULL), *tuned()):
        name = f"{head_dim}-{str(dtype).removeprefix('torch.')}-{mask}{'-rope' * rope}-{tokens}"
        for case in (launch.aot_case() for launch in launches(head_dim, dtype, mask, rope, tokens)):
            distinct = (case.kernel.__name__, str(case.signature), str(case.constants))
            matrix = dtype != torch.float32 and "rotate" not in case.name
            cases.setdefault(distinct, replace(case, name=f"masked_attention-{case.name}-{name}", expects_mma=matrix))
    return list(cases.values())


def tuned() -> list[tuple[int, torch.dtype, str, bool, int]]:
    """What the table of the architecture that is compiled for (`tuned_tiles.compiling_for`) has entries for, as above."""
    keys = sorted({name for _, name in tuned_tiles.entries()})
    pairs = (name.split("-") for name in keys)
    return [(int(limit), torch.bfloat16, "frame_causal", True, SHORT if rows == "short" else TOKENS) for limit, rows in pairs]


def launches(head_dim: int, dtype: torch.dtype, mask: str, rope: bool, tokens: int) -> list[Launch]:
    """The launches of forward and backward at one configuration, on meta tensors."""
    batch = 1 if mask == "ragged" else 2
    meta = torch.device("meta")
    q, k, v = torch.empty(batch, tokens, 3, HEADS, head_dim, dtype=dtype, device=meta).permute(2, 0, 3, 1, 4)
    dq, dk, dv = torch.empty(batch, tokens, 3, HEADS, head_dim, dtype=dtype, device=meta).permute(2, 0, 3, 1, 4)
    out = torch.empty(batch, tokens, HEADS, head_dim, dtype=dtype, device=meta).transpose(1, 2)
    lse = torch.empty(batch, HEADS, tokens, device=meta)
    extras = Extras(
        scale=head_dim**-0.5,
        bool_mask=torch.empty(batch, HEADS, tokens, tokens, dtype=torch.bool, device=meta) if mask == "bool" else None,
        key_lengths=torch.empty(batch, dtype=torch.int32, device=meta) if mask == "key_padding" else None,
        cu_seqlens=torch.empty(9, dtype=torch.int32, device=meta) if mask == "ragged" else None,
        max_seqlen=tokens if mask == "ragged" else 0,
        tokens_per_frame=258 if mask == "frame_causal" else 0,
        **{
            f"{side}_{table}": torch.empty(1, tokens, head_dim, device=meta)
            for side in "qk"
            for table in ("cos", "sin")
            if rope
        },
    )
    found = forward_launches(q, k, v, out, lse, extras)
    return found + backward_launches(torch.empty_like(out), q, k, v, out, lse, dq, dk, dv, extras)
