"""Attention at the sizes of real training, for GPUs: about 16k tokens a call, each direction apart, against every PyTorch form.

Heads, head dims and sequence lengths are those of the models that each line names; the batch makes up for the length, so that
a cell of any length fills the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from .. import attention_peers as peers
from .. import graphs
from ..providers import kernel_providers
from .base import DTYPES, Case, Provider
from .masked_attention import (
    AttentionInputs,
    Shape,
    attention_inputs,
    bool_mask,
    flex_peers,
    kernel_attention,
    key_mask,
    make_case,
    pad_to_longest,
    peer_provider,
    rope_peers,
    run,
    sdpa,
    unpad,
    with_arguments,
    with_backends,
    with_forward,
)

TOKENS = 16 * 1024  # of a call, as FlashAttention's benchmarks have it
# Contexts as block masks leave them: V-JEPA 2 ViT-L (both masks of 24 clips), I-JEPA ViT-H/14.
VIDEO_CONTEXTS = tuple(64 + 592 * (i * 7 % 24) // 23 for i in range(24)) * 2
IMAGE_CONTEXTS = tuple(58 + i * 11 % 28 for i in range(224))
MAX_SCORE_BYTES = 8 << 30  # of forms that hold all scores, in float32


@dataclass(frozen=True)
class Line:
    """One workload, which makes a case a direction. `graph`: its launches may take longer than its kernels."""

    name: str
    shape: Shape
    peer: str
    graph: bool = False


def _line(kind: str, head_dim: int, tokens: int, peer: str, *, heads: int = 16, batch: int = 0, **more: object) -> Line:
    graph = tokens <= 600 and more.get("lengths") in (None, IMAGE_CONTEXTS)
    shape = Shape(batch or max(TOKENS // tokens, 1), heads, head_dim, tokens)
    return Line(f"train-{kind}-d{head_dim}-n{tokens}", replace(shape, **more), peer, graph)  # type: ignore[arg-type]


def _ragged(kind: str, head_dim: int, lengths: tuple[int, ...]) -> Line:
    line = _line(f"ragged-{kind}", head_dim, max(lengths), "torch-sdpa-padded", batch=len(lengths), lengths=lengths)
    return replace(line, shape=replace(line.shape, tokens=0))


def lines() -> list[Line]:
    """The workloads, those that decide first."""
    dense, rope, causal = "torch-sdpa", "torch-rope-sdpa", "torch-sdpa-bool-mask"
    clip = (8, 16, 16)  # V-JEPA 2, 16 frames of 256 x 256
    return [
        _line("dense", 64, 2048, dense),  # V-JEPA 2 ViT-L, without its RoPE
        _line("rope", 64, 512, rope, grid=(2, 16, 16)),  # its contexts
        _line("rope-predictor", 32, 1460, rope, heads=12, grid=clip),  # V-JEPA 2 predictor: 501 + 959
        _line("causal", 64, 1806, causal, causal_frames=7),  # V-JEPA 2-AC, teacher forcing
        _ragged("video", 64, VIDEO_CONTEXTS),
        _line("rope", 64, 2048, rope, grid=clip),  # V-JEPA 2 ViT-L
        _line("dense", 32, 1460, dense, heads=12),
        _line("causal", 64, 516, causal, causal_frames=2),  # V-JEPA 2-AC, rollout
        _line("dense", 80, 256, dense),  # I-JEPA ViT-H/14
        _ragged("image", 80, IMAGE_CONTEXTS),
        _line("dense", 64, 18432, dense, heads=22),  # V-JEPA 2 ViT-g, 64 frames of 384 x 384
        _line("dense", 80, 70, dense),  # I-JEPA ViT-H/14, its contexts
        _line("rope", 64, 138, rope, grid=clip),  # V-JEPA 2, the smaller contexts
        _line("dense", 64, 258, dense),  # V-JEPA 2-AC, one frame
        _line("dense", 88, 196, dense),  # I-JEPA ViT-g/16
        _line("dense", 24, 1118, dense),  # V-JEPA predictor: 367 + 751
        _line("dense", 128, 2048, dense),
        _line("cached", 64, 516, dense, causal_frames=2, new_frames=1),  # V-JEPA 2-AC, a rollout's new frame
        _line("padded", 64, 656, "torch-sdpa-key-mask", batch=24, key_lengths=VIDEO_CONTEXTS[:24]),
        _line("dense", 64, 1568, dense),  # V-JEPA ViT-L
        _line("dense", 80, 4608, dense),  # V-JEPA ViT-H at 384
        _line("rope", 80, 2048, rope, grid=clip),  # V-JEPA 2 ViT-H
        _line("dense", 96, 2048, dense),
        _line("dense", 104, 2048, dense),  # ViT-G/14
    ]


def cases() -> list[Case]:
    """A case a workload and direction; a rollout has no backward."""
    return [case for line in lines() for case in line_cases(line)]


def line_cases(line: Line, *, compiled: bool = True) -> list[Case]:
    """The cases of one workload; not `compiled`, peers that are meant to be compiled run as they are written."""
    backward = replace(line.shape, forward=False, backward=True)
    return [_case(line, shape, compiled) for shape in (line.shape, *([] if line.shape.new_frames else [backward]))]


def _case(line: Line, shape: Shape, compiled: bool) -> Case:
    made = make_case(line.name, shape, "bf16", line.peer, {"gpu"})
    inputs = partial(attention_inputs, shape, DTYPES["bf16"], on_device=True)
    chosen = partial(_providers, shape, line.graph, compiled)
    return replace(made, make_inputs=inputs, providers=chosen, repeat=True)


def _providers(shape: Shape, graph: bool, compiled: bool, device: torch.device) -> list[Provider]:
    setup = partial(with_forward, with_arguments, kernel_attention)
    found = kernel_providers("masked_attention", device, partial(run, kernel_attention), setup=setup)
    if not shape.forward:  # the cuda backend's gradients are Triton's
        found = [p for p in found if not p.name.startswith("jk-cuda")]
    found += _peers(shape, compiled, device)
    found = [_bounded(p, shape) if p.name == "jk-reference" or p.name.endswith("-math") else p for p in found]
    if not graph or device.type != "cuda":
        return found
    return [*found, *(graphs.replayed(p, device) for p in found if _worth_a_graph(p.name))]


def _worth_a_graph(name: str) -> bool:
    """Ours, and the peers that may be the fastest."""
    ours = name.startswith(("jk-triton", "jk-cuda"))
    return ours or name == "torch-varlen" or name.endswith(("-flash", "-efficient", "-cudnn"))


def _bounded(provider: Provider, shape: Shape) -> Provider:
    """A form that holds all scores, where they fit; of unequal lengths as if all were the longest."""
    scores = shape.batch * shape.heads * max(shape.lengths, default=shape.tokens) ** 2 * 4
    if scores <= MAX_SCORE_BYTES:
        return provider
    return replace(provider, supports=lambda _inputs: f"it would hold {scores / 2**30:.0f} GiB of scores")


def _peers(shape: Shape, compiled: bool, device: torch.device) -> Sequence[Provider]:
    if shape.lengths:
        about = "padded, key mask; padding is not timed"
        padded = peer_provider("torch-sdpa-padded", sdpa, pad_to_longest, outputs=unpad, about=about)
        return [*with_backends(padded, device), *_unequal_lengths(compiled, device)]
    if shape.key_lengths:
        return with_backends(peer_provider("torch-sdpa-key-mask", sdpa, key_mask, about="dense boolean mask"), device)
    if shape.new_frames == 1:
        about = "no mask: the newest frame sees every key"
        return [
            *with_backends(peer_provider("torch-sdpa", sdpa, about=about), device),
            peer_provider("torch-sdpa-bool-mask", sdpa, bool_mask, about="dense boolean mask, the official form"),
        ]
    if shape.causal_frames:
        about = "dense boolean mask, the official form"
        masked = with_backends(peer_provider("torch-sdpa-bool-mask", sdpa, bool_mask, about=about), device)
        return [*masked, *flex_peers(True, device)]
    if shape.grid is not None:
        return [*rope_peers(device.type == "cuda", compiled), *_fused_rope(compiled, device)]
    return [*with_backends(peer_provider("torch-sdpa", sdpa), device), _flex_dense(device)]


def _flex_dense(device: torch.device) -> Provider:
    why = peers.flex_runs(device)

    def attend(inputs: AttentionInputs) -> Tensor:
        return peers.flex(*inputs.split(), None)

    return peer_provider("torch-flex", attend, supports=lambda _x: why, about="FlexAttention, compiled")


def _fused_rope(compiled: bool, device: torch.device) -> list[Provider]:
    """The strongest form without a fused kernel: tables made ahead, one compiled rotation, then each backend of SDPA."""

    def tables(inputs: AttentionInputs) -> AttentionInputs:
        import jepa_kernels as jk

        assert inputs.positions is not None
        made = jk.Rope3D(inputs.positions).tables(inputs.shape.head_dim, inputs.qkv.dtype)
        return replace(inputs, extra={"cos": made.k_cos, "sin": made.k_sin})

    def attend(inputs: AttentionInputs) -> Tensor:
        q, k, v = inputs.split()
        rotation = peers.compiled_rotation() if compiled else peers.rotate_both
        q, k = rotation(q, k, inputs.extra["cos"], inputs.extra["sin"])
        return functional.scaled_dot_product_attention(q, k, v)

    about = "tables made ahead, compiled rotation, SDPA"
    base = peer_provider("torch-rope-tables", attend, tables, about=about)
    return [p for p in with_backends(base, device) if not p.name.endswith("-math")]


def _unequal_lengths(compiled: bool, device: torch.device) -> list[Provider]:
    why_not_varlen, why_not_flex = peers.varlen_runs(device), peers.flex_runs(device)

    def bounds(inputs: AttentionInputs) -> AttentionInputs:
        ends = torch.tensor((0, *inputs.shape.lengths)).cumsum(0).to(inputs.qkv.device, torch.int32)
        return replace(inputs, extra={"ends": ends})

    def varlen(inputs: AttentionInputs) -> Tensor:
        call, ends, longest = peers.varlen_attention(), inputs.extra["ends"], max(inputs.shape.lengths)
        assert call is not None
        out: Tensor = call(*inputs.qkv.unbind(1), ends, ends, longest, longest)
        return out

    def blocks(inputs: AttentionInputs) -> AttentionInputs:
        return replace(inputs, extra={"blocks": peers.document_blocks(inputs.shape.lengths, inputs.qkv.device)})

    def flex(inputs: AttentionInputs) -> Tensor:
        q, k, v = (part.transpose(0, 1)[None] for part in inputs.qkv.unbind(1))
        return peers.flex(q, k, v, inputs.extra["blocks"], compiled=compiled)[0].transpose(0, 1)

    about = "FlexAttention, block mask of documents"
    return [
        peer_provider("torch-varlen", varlen, bounds, supports=lambda _x: why_not_varlen, about="varlen_attn of PyTorch"),
        peer_provider("torch-flex", flex, blocks, supports=lambda _x: why_not_flex, about=about),
    ]
