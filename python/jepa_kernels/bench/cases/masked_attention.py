"""Attention of JEPA models: dense, with 3-D RoPE inside, frame-causal, and ragged batches of unequal lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import attention_peers
from .. import work as formulas
from ..attention_exact import exact
from ..eager_vjepa2 import rotate_queries_or_keys
from ..providers import kernel_providers
from .base import DTYPES, Case, Provider, Setting, Work, unchanged

RAGGED_LENGTHS = (70, 113, 138, 258)
# A batch of contexts as block masks leave them: 24 lengths from 64 to 656, evenly spread, in mixed order.
LONG_RAGGED_LENGTHS = tuple(64 + 592 * (i * 7 % 24) // 23 for i in range(24))


Attend = Callable[["AttentionInputs"], Tensor]
Setup = Callable[["AttentionInputs"], "AttentionInputs"]


@dataclass(frozen=True)
class Shape:
    """Heads and tokens of a real model. `grid` is (frames, rows, columns) with 3-D RoPE, or None without."""

    batch: int
    heads: int
    head_dim: int
    tokens: int
    grid: tuple[int, int, int] | None = None
    causal_frames: int = 0
    lengths: tuple[int, ...] = ()
    backward: bool = False
    forward: bool = True  # False times the backward alone
    key_lengths: tuple[int, ...] = ()  # visible keys of each sequence of the batch
    new_frames: int = 0  # queries are those of so many last frames alone: the keys of the frames before come from a cache

    @property
    def queries(self) -> int:
        """Query tokens of a sequence."""
        return self.tokens // self.causal_frames * self.new_frames if self.new_frames else self.tokens

    @property
    def direction(self) -> str:
        """Which passes are timed."""
        return "fwd-bwd" if self.forward and self.backward else "bwd" if self.backward else "fwd"


@dataclass(frozen=True)
class AttentionInputs:
    """Packed qkv, (B, N, 3, H, D), or (total, 3, H, D) for a ragged batch, and the gradient of the output."""

    qkv: Tensor
    upstream: Tensor
    shape: Shape
    positions: Tensor | None = None  # fp32 (N, 3): frame, row, column
    extra: dict[str, Any] = field(default_factory=dict)
    saved: Tensor | None = None  # the output, with its graph, where the backward alone is timed

    def split(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as (B, H, N, D) views, as the official models hand them to SDPA."""
        q, k, v = self.qkv.permute(2, 0, 3, 1, 4).unbind()
        return q[:, :, self.shape.tokens - self.shape.queries :], k, v


def attention_inputs(shape: Shape, dtype: torch.dtype, setting: Setting, *, on_device: bool = False) -> AttentionInputs:
    """Normal values, of the CPU's generator, or of the device's own: large inputs take seconds on one CPU thread."""
    device = setting.device
    generator = torch.Generator(device).manual_seed(setting.seed) if on_device else setting.generator()
    lead = (sum(shape.lengths),) if shape.lengths else (shape.batch, shape.tokens)
    rows = lead if shape.lengths else (shape.batch, shape.queries)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=generator.device).to(device, dtype)

    qkv = normal(*lead, 3, shape.heads, shape.head_dim)
    upstream = normal(*rows, shape.heads, shape.head_dim)
    if not shape.lengths:
        upstream = upstream.transpose(1, 2)
    positions = None
    if shape.grid is not None:
        axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape.grid), indexing="ij")
        positions = torch.stack(axes, -1).reshape(-1, 3)[: shape.tokens].to(device)
    return AttentionInputs(qkv.requires_grad_(shape.backward), upstream, shape, positions)


def _pairs(shape: Shape) -> int:
    if shape.lengths:
        return formulas.ragged_pairs(shape.lengths)
    if shape.causal_frames:
        per_frame = shape.tokens // shape.causal_frames
        cached = shape.causal_frames - shape.new_frames if shape.new_frames else 0
        before = formulas.frame_causal_pairs(cached, per_frame)
        return shape.batch * (formulas.frame_causal_pairs(shape.causal_frames, per_frame) - before)
    if shape.key_lengths:
        return shape.tokens * sum(shape.key_lengths)
    return shape.batch * shape.tokens**2


def _work(inputs: AttentionInputs) -> Work:
    shape = inputs.shape
    keys = sum(shape.lengths) if shape.lengths else shape.batch * shape.tokens
    queries = keys if shape.lengths else shape.batch * shape.queries
    visible = sum(shape.key_lengths) if shape.key_lengths else keys
    passes = {"forward": shape.forward, "backward": shape.backward}
    size = inputs.qkv.element_size()
    return Work(
        formulas.attention_flops(_pairs(shape), shape.heads, shape.head_dim, **passes),
        formulas.attention_bytes(
            queries, shape.heads, shape.head_dim, value_bytes=size, keys=keys, visible_keys=visible, **passes
        ),
        len(shape.lengths) or shape.batch,
        queries,
    )


def _arguments(inputs: AttentionInputs) -> dict[str, Any]:
    import jepa_kernels as jk

    shape = inputs.shape
    arguments: dict[str, Any] = {}
    if shape.lengths:
        ends = torch.tensor((0, *shape.lengths)).cumsum(0).to(inputs.qkv.device, torch.int32)
        arguments["mask"] = jk.Ragged(ends, max(shape.lengths))
    elif shape.causal_frames:
        cached = shape.causal_frames - shape.new_frames if shape.new_frames else 0
        arguments["mask"] = jk.FrameCausal(shape.tokens // shape.causal_frames, cached)
    elif shape.key_lengths:
        arguments["mask"] = jk.KeyPadding(torch.tensor(shape.key_lengths, dtype=torch.int32, device=inputs.qkv.device))
    if inputs.positions is not None:
        arguments["rope"] = jk.Rope3D(inputs.positions)
    return arguments


def with_arguments(inputs: AttentionInputs) -> AttentionInputs:
    return replace(inputs, extra=_arguments(inputs))


def run(attend: Attend, inputs: AttentionInputs) -> tuple[Tensor, ...]:
    """The output, and the gradient of qkv where the shape asks for it."""
    out = inputs.saved if inputs.saved is not None else attend(inputs)
    if not inputs.shape.backward:
        return (out,)
    upstream = inputs.upstream.to(out.dtype)
    return (out.detach(), *torch.autograd.grad(out, inputs.qkv, upstream, retain_graph=inputs.saved is not None))


def kernel_attention(inputs: AttentionInputs) -> Tensor:
    import jepa_kernels as jk

    if inputs.shape.new_frames:
        return jk.masked_attention(*inputs.split(), **inputs.extra)
    return jk.masked_attention(inputs.qkv, **inputs.extra)


def _exact(inputs: AttentionInputs) -> list[Tensor]:
    """The definition in float64, on the rounded inputs."""
    shape = inputs.shape
    tensors = inputs.split() if shape.new_frames else (inputs.qkv,)
    return exact(tensors, inputs.upstream if shape.backward else None, **_arguments(inputs))


def _low_precision(inputs: AttentionInputs) -> list[Tensor]:
    """PyTorch's own attention in the dtype of the inputs, whose error sets the limit."""
    shape = inputs.shape
    if shape.lengths:
        padded = pad_to_longest(inputs)
        return unpad(padded, run(sdpa, padded))
    if shape.grid is not None:
        return list(run(partial(rope_sdpa, promote=inputs.qkv.is_cuda), inputs))
    if shape.key_lengths:
        return list(run(sdpa, key_mask(inputs)))
    return list(run(sdpa, bool_mask(inputs) if shape.causal_frames else inputs))


def sdpa(inputs: AttentionInputs) -> Tensor:
    return functional.scaled_dot_product_attention(*inputs.split(), **inputs.extra)


def rope_sdpa(inputs: AttentionInputs, *, promote: bool) -> Tensor:
    """The official form: angles rebuilt and both tensors rotated elementwise in every call."""
    q, k, v = inputs.split()
    assert inputs.positions is not None
    q, k = (rotate_queries_or_keys(x, inputs.positions, promote=promote).to(v.dtype) for x in (q, k))
    return functional.scaled_dot_product_attention(q, k, v)


def bool_mask(inputs: AttentionInputs) -> AttentionInputs:
    """The official frame-causal form: a dense boolean mask, built ahead and outside the timing."""
    per_frame = inputs.shape.tokens // inputs.shape.causal_frames
    frame = torch.arange(inputs.shape.tokens, device=inputs.qkv.device) // per_frame
    return replace(inputs, extra={"attn_mask": frame[-inputs.shape.queries :, None] >= frame[None, :]})


def key_mask(inputs: AttentionInputs) -> AttentionInputs:
    """Keys beyond each length masked, built ahead and outside the timing."""
    lengths = torch.tensor(inputs.shape.key_lengths)
    visible = torch.arange(inputs.shape.tokens)[None, :] < lengths[:, None]
    return replace(inputs, extra={"attn_mask": visible[:, None, None, :].to(inputs.qkv.device)})


def pad_to_longest(inputs: AttentionInputs) -> AttentionInputs:
    """Sequences padded to the longest, with a key mask; padding is outside the timing, in favour of the peer."""
    lengths, longest = inputs.shape.lengths, max(inputs.shape.lengths)
    parts = inputs.qkv.detach().split(list(lengths))
    padded = torch.stack([functional.pad(p, (0, 0) * 3 + (0, longest - p.shape[0])) for p in parts])
    upstream = torch.stack(
        [functional.pad(p, (0, 0) * 2 + (0, longest - p.shape[0])) for p in inputs.upstream.split(list(lengths))]
    ).transpose(1, 2)
    valid = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    mask = valid[:, None, None, :].to(padded.device)
    return replace(
        inputs,
        qkv=padded.requires_grad_(inputs.shape.backward),
        upstream=upstream,
        extra={"attn_mask": mask},
    )


def unpad(state: AttentionInputs, result: tuple[Tensor, ...]) -> list[Tensor]:
    lengths = state.shape.lengths
    out = torch.cat([result[0][i, :, :n].transpose(0, 1) for i, n in enumerate(lengths)])
    return [out, *(torch.cat([g[i, :n] for i, n in enumerate(lengths)]) for g in result[1:])]


def with_forward(setup: Setup, attend: Attend, inputs: AttentionInputs) -> AttentionInputs:
    state = setup(inputs)
    return state if inputs.shape.forward else replace(state, saved=attend(state))


def peer_provider(name: str, attend: Attend, setup: Setup = unchanged, **options: Any) -> Provider:
    return Provider(name, partial(run, attend), partial(with_forward, setup, attend), **options)


@lru_cache
def _compiled_rope_sdpa(promote: bool) -> Attend:
    return torch.compile(partial(rope_sdpa, promote=promote), dynamic=False)


def rope_peers(promote: bool, compiled: bool) -> list[Provider]:
    eager = partial(rope_sdpa, promote=promote)
    found = [peer_provider("torch-rope-sdpa", eager, about="elementwise RoPE as autocast has it, then SDPA")]
    if compiled:
        about = "the same, compiled"
        found.append(peer_provider("torch-compile-rope-sdpa", lambda x: _compiled_rope_sdpa(promote)(x), about=about))
    return found


def with_backends(base: Provider, device: torch.device) -> list[Provider]:
    return [base, *attention_peers.sdpa_backends(base, device)]


def flex_peers(compiled: bool, device: torch.device) -> list[Provider]:
    """FlexAttention with the rule as a block mask, built ahead; it compiles, so a quick run leaves it out."""
    if not compiled:
        return []
    why = attention_peers.flex_runs(device)
    attend = partial(_flex, compiled=True)
    return [peer_provider("torch-flex", attend, _blocks, supports=lambda _x: why, about="FlexAttention, block mask")]


def _blocks(inputs: AttentionInputs) -> AttentionInputs:
    shape = inputs.shape
    blocks = attention_peers.frame_causal_blocks(shape.tokens, shape.tokens // shape.causal_frames, inputs.qkv.device)
    return replace(inputs, extra={"blocks": blocks})


def _flex(inputs: AttentionInputs, *, compiled: bool) -> Tensor:
    return attention_peers.flex(*inputs.split(), inputs.extra["blocks"], compiled=compiled)


def _same_length(inputs: AttentionInputs) -> AttentionInputs:
    """No mask; a ragged batch becomes as many sequences of one length, the root mean square: the same FLOPs."""
    shape = inputs.shape
    if not shape.lengths:
        return replace(inputs, extra={})
    length = round((formulas.ragged_pairs(shape.lengths) / len(shape.lengths)) ** 0.5)
    qkv = inputs.qkv.new_empty(len(shape.lengths), length, 3, shape.heads, shape.head_dim).normal_()
    upstream = torch.randn_like(qkv[:, :, 0]).transpose(1, 2)
    return replace(inputs, qkv=qkv.requires_grad_(shape.backward), upstream=upstream, extra={})


def _yardsticks(shape: Shape, device: torch.device) -> list[Provider]:
    """Our own attention without the mask: what its structure should save can be read off the ratio."""
    setup = partial(with_forward, _same_length, kernel_attention)
    about = "sequences of equal length, the same FLOPs" if shape.lengths else "no mask, the same tokens"
    found = kernel_providers("masked_attention", device, partial(run, kernel_attention), setup=setup, about=about, yardstick=True)
    return [replace(p, name=f"{p.name}-dense") for p in found if p.name != "jk-reference"]


def _providers(shape: Shape, compiled: bool, device: torch.device) -> list[Provider]:
    setup = partial(with_forward, with_arguments, kernel_attention)
    kernels = kernel_providers("masked_attention", device, partial(run, kernel_attention), setup=setup)
    if shape.lengths or shape.causal_frames:
        kernels += _yardsticks(shape, device)
    if shape.lengths:
        return [*kernels, peer_provider("torch-sdpa-padded", sdpa, pad_to_longest, outputs=unpad, about="padded, key mask")]
    if shape.causal_frames:
        about = "dense boolean mask, the official form"
        peers = with_backends(peer_provider("torch-sdpa-bool-mask", sdpa, bool_mask, about=about), device)
        return [*kernels, *peers, *flex_peers(compiled, device)]
    if shape.grid is not None:
        return [*kernels, *rope_peers(device.type == "cuda", compiled)]
    return [*kernels, *with_backends(peer_provider("torch-sdpa", sdpa), device)]


def make_case(name: str, shape: Shape, dtype: str, peer: str, tags: set[str]) -> Case:
    """One attention case; the name gains its direction. Compiling takes longer than a quick run has."""
    make: Callable[[Setting], AttentionInputs] = partial(attention_inputs, shape, DTYPES[dtype])
    names = ("batch", "heads", "head_dim", "tokens", "causal_frames")
    listed: dict[str, int | float | str] = {k: getattr(shape, k) for k in names}
    listed |= {"grid": str(shape.grid), "lengths": str(shape.lengths), "direction": shape.direction}
    if shape.key_lengths or shape.new_frames:
        listed |= {"key_lengths": str(shape.key_lengths), "new_frames": shape.new_frames}
    return Case(
        operator="masked_attention",
        name=f"{name}-{shape.direction}",
        dtype=dtype,
        shape=listed,
        make_inputs=make,
        providers=partial(_providers, shape, "quick" not in tags),
        work=_work,
        reference=_exact,
        low_precision=_low_precision,
        peer=peer,
        tags=frozenset(tags),
    )


def _dense_cases(dense: Shape) -> list[Case]:
    """Without mask or rotation, each direction apart: every first-class head dim, and the sequence lengths of ViT-L."""
    chosen = [("bf16", 64, n) for n in (512, 1568, 1806, 2048)]
    chosen += [("bf16", d, 1568) for d in (24, 32, 80, 88)]
    chosen += [("fp32", 64, n) for n in (512, 1568)]
    found = []
    for dtype, head_dim, tokens in chosen:
        forward = replace(dense, head_dim=head_dim, tokens=tokens)
        for shape in (forward, replace(forward, forward=False, backward=True)):
            tags = {"full", "quick"} if tokens == 512 and shape.forward else {"full"}
            found.append(make_case(f"dense-d{head_dim}-n{tokens}", shape, dtype, "torch-sdpa", tags))
    return found


def cases() -> list[Case]:
    """The attention cases: ViT-L heads (d = 64), the V-JEPA 2 predictor (d = 32), and every first-class head dim."""
    dense = Shape(batch=1, heads=16, head_dim=64, tokens=512)
    rope = replace(dense, grid=(2, 16, 16))
    long_rope = replace(rope, tokens=2048, grid=(8, 16, 16))
    causal = replace(dense, tokens=516, causal_frames=2)
    causal_7 = replace(causal, tokens=1806, causal_frames=7)
    ragged = replace(dense, lengths=RAGGED_LENGTHS, tokens=0, batch=len(RAGGED_LENGTHS))
    long_ragged = replace(ragged, lengths=LONG_RAGGED_LENGTHS, batch=len(LONG_RAGGED_LENGTHS))
    predictor = Shape(batch=2, heads=12, head_dim=32, tokens=1024, grid=(4, 16, 16))
    every, full = {"quick", "full"}, {"full"}
    found = _dense_cases(dense)
    for dtype in ("bf16", "fp32"):
        found += [
            make_case("vjepa2-vitl-rope-n512", rope, dtype, "torch-rope-sdpa", every),
            make_case("vjepa2-ac-causal-2f", causal, dtype, "torch-sdpa-bool-mask", every),
            make_case("vjepa2-contexts-ragged", ragged, dtype, "torch-sdpa-padded", every),
        ]
    found.append(make_case("vjepa2-vitl-rope-n512", replace(rope, backward=True), "bf16", "torch-rope-sdpa", every))
    for name, shape, peer in (
        ("vjepa2-vitl-rope-n2048", long_rope, "torch-rope-sdpa"),
        ("vjepa2-predictor-d32-n1024", predictor, "torch-rope-sdpa"),
        ("vjepa2-ac-causal-7f", causal_7, "torch-sdpa-bool-mask"),
        ("vjepa2-contexts-ragged-24", long_ragged, "torch-sdpa-padded"),
    ):
        found += [make_case(name, s, "bf16", peer, full) for s in (shape, replace(shape, backward=True))]
    return found
