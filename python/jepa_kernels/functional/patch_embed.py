"""`patch_embed`: pixels to tokens for the patches that a mask keeps, without a normalised copy or an unfolded image in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..ops.patch_embed import embed, looks_at_values
from ..ops.patch_embed_shapes import token_count
from ..ops.plans import native_values
from ..ragged import RaggedIds

Keep = Tensor | Sequence[Tensor] | RaggedIds | None
Channels = Tensor | Sequence[float] | None

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def patch_embed(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    keep: Keep = None,
    pos_embed: Tensor | None = None,
    mean: Channels = None,
    std: Channels = None,
) -> Tensor:
    """Embeds the patches of images or clips that `keep` names, straight from uint8 or float pixels.

    Formula: `token = conv(y, weight, stride=patch) + bias + pos_embed[id]` with `y = (x - mean[c]) / std[c]` in the pixels' own
    unit (0 to 255 for uint8), then `keep`; patches that no mask keeps are neither read nor multiplied. The token id of the patch
    in frame group t, row r, column c of the patch grid is `t * rows * columns + r * columns + c`.

    Shapes:
        pixels: (B, C, H, W) with weight (D, C, ph, pw), or (B, C, T, H, W) with weight (D, C, pt, ph, pw); any strides, so that
            decoder output (B, T, H, W, C) comes in as `frames.permute(0, 4, 1, 2, 3)` without a copy. N patches an element.
        bias: (D,). mean, std: C numbers or a (C,) tensor. pos_embed: (N, D) or (1, N, D), added by token id.
        keep: None for all patches, result (B, N, D); int64 (B, K), result (B, K, D); a list of M such, result (M * B, K, D),
            mask-major; `RaggedIds`, result (total, D). Ids may repeat and come in any order; each occurrence yields a token.

    Dtypes: pixels uint8, float32, float64, bfloat16 or float16; weight and bias of one float dtype, which is the dtype of the
        product (under autocast: autocast's dtype, unless the weight is float64). Pixels are normalised in float32 (float64 for a
        float64 weight) and rounded once; products accumulate in float32. The result has the weight's dtype, promoted with
        `pos_embed`'s. Gradients for weight, bias, pos_embed and float pixels.

    Raises:
        TypeError: an argument is no tensor, or its dtype is not listed above; `mean` or `std` is a single number.
        ValueError: ranks, sizes or devices do not fit, the frame is not divisible into patches, `mean` or `std` has another
            length than C or is not finite, a std is not positive, an id lies outside [0, N), or `cu_seqlens` do not
            rise from 0 to the number of ids. Tensors on a GPU are looked into only with JEPA_KERNELS_CHECK=1;
            without it an id out of range reads nothing and yields a row of NaN. Under torch.compile the operator
            looks at ids and `cu_seqlens` by the same rule; the values of `mean` and `std` tensors are not looked
            at.

    Cost: 2 * R * K * D FLOPs for R kept patches of K = C * pt * ph * pw pixels. Bytes: R * K of uint8 pixels (4 * R * K of
        float32), the weight, and R * D tokens; on a CPU also R * K packed values written and read once.

    Deterministic: yes on cpu and triton, bit for bit, gradients included, also where ids repeat.

    Source: Dosovitskiy et al., ViT (2021); kept patches only as in He et al., MAE (2022), and Bardes et al., V-JEPA (2024).

    Example:
        >>> import torch, jepa_kernels as jk
        >>> frames = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)  # decoder order
        >>> weight = torch.randn(8, 3, 2, 16, 16)
        >>> keep = torch.tensor([[0, 3, 7]])
        >>> pixels = frames.permute(0, 4, 1, 2, 3)
        >>> tokens = jk.patch_embed(pixels, weight, keep=keep, mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])
        >>> tokens.shape
        torch.Size([1, 3, 8])
    """
    arguments = prepare(pixels, weight, bias, keep=keep, pos_embed=pos_embed, mean=mean, std=std)
    tokens = embed(arguments)
    if isinstance(keep, RaggedIds):
        return tokens
    if keep is None:
        return tokens.view(pixels.shape[0], token_count(arguments["pixels"], arguments["weight"]), weight.shape[0])
    masks = [keep] if isinstance(keep, Tensor) else keep
    return tokens.view(len(masks) * masks[0].shape[0], masks[0].shape[1], weight.shape[0])


def prepare(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    keep: Keep = None,
    pos_embed: Tensor | None = None,
    mean: Channels = None,
    std: Channels = None,
) -> dict[str, Any]:
    """Checks the call and returns the operator's arguments: images as clips of one frame, `keep` as indices of patches."""
    _check_pixels(pixels, weight)
    _check_weight(weight, bias, pixels)
    if pixels.ndim == 4:
        pixels, weight = pixels.unsqueeze(2), weight.unsqueeze(2)
    kind = pixels.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if bias is not None and bias.dtype != weight.dtype:
        raise TypeError(f"patch_embed: bias is {bias.dtype}, weight {weight.dtype}; convert one to the other")
    tokens = token_count(pixels, weight)
    statistics = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return {
        "pixels": pixels,
        "weight": weight,
        "bias": bias,
        "rows": _rows(keep, pixels, tokens),
        "pos_embed": _positions(pos_embed, pixels, tokens, weight.shape[0]),
        "mean": channel_values("mean", mean, pixels, statistics),
        "std": channel_values("std", std, pixels, statistics),
    }


def _check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...], pixels: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"patch_embed: {name} is {type(value).__name__}, not a tensor")
    if value.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"patch_embed: {name} has dtype {value.dtype}; convert it to one of {names}")
    if value.device != pixels.device:
        raise ValueError(f"patch_embed: {name} is on {value.device}, pixels on {pixels.device}; move them together")


def _check_pixels(pixels: Tensor, weight: Tensor) -> None:
    _check_tensor("pixels", pixels, (torch.uint8, *_FLOATS), pixels)
    _check_tensor("weight", weight, _FLOATS, pixels)
    if pixels.ndim not in (4, 5):
        raise ValueError(
            f"patch_embed: pixels have shape {tuple(pixels.shape)}; make them (B, C, H, W) or (B, C, T, H, W)"
        )
    if weight.ndim != pixels.ndim:
        expected = "(D, C, ph, pw)" if pixels.ndim == 4 else "(D, C, pt, ph, pw)"
        raise ValueError(
            f"patch_embed: weight has shape {tuple(weight.shape)}, pixels {tuple(pixels.shape)}; pass a weight {expected}"
        )


def _check_weight(weight: Tensor, bias: Tensor | None, pixels: Tensor) -> None:
    if weight.shape[1] != pixels.shape[1]:
        raise ValueError(f"patch_embed: weight takes {weight.shape[1]} channels, pixels have {pixels.shape[1]}")
    for axis, size, step in zip("THW"[5 - pixels.ndim :], pixels.shape[2:], weight.shape[2:], strict=True):
        if step == 0 or size % step:
            raise ValueError(
                f"patch_embed: {axis} = {size} is not a multiple of the patch size {step}; crop or pad the pixels to one"
            )
    if bias is None:
        return
    _check_tensor("bias", bias, _FLOATS, pixels)
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"patch_embed: bias has shape {tuple(bias.shape)}; expected ({weight.shape[0]},) as weight has {weight.shape[0]} rows"
        )


def _positions(pos_embed: Tensor | None, pixels: Tensor, tokens: int, width: int) -> Tensor | None:
    if pos_embed is None:
        return None
    _check_tensor("pos_embed", pos_embed, _FLOATS, pixels)
    if pos_embed.shape not in ((tokens, width), (1, tokens, width)):
        raise ValueError(
            f"patch_embed: pos_embed has shape {tuple(pos_embed.shape)}; expected ({tokens}, {width}) or (1, {tokens}, {width}): "
            "one row for each patch of these pixels"
        )
    return pos_embed.reshape(tokens, width)


def _checking(device: torch.device) -> bool:
    """Whether values are looked at here: not under torch.compile, which traces without; there the operator does."""
    return not torch.compiler.is_compiling() and looks_at_values(device)


def channel_numbers(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """`mean` or `std` as Python numbers: one for each channel, finite, those of `std` positive."""
    if not hasattr(values, "__len__"):
        raise TypeError(f"patch_embed: {name} is {values}; give {channels} numbers, one for each channel")
    if len(values) != channels:
        raise ValueError(
            f"patch_embed: {name} has shape ({len(values)},); expected ({channels},), one number for each channel"
        )
    numbers = tuple(float(value) for value in values)
    for index, number in enumerate(numbers):
        if not math.isfinite(number) or (name == "std" and number <= 0):
            wanted = "positive finite" if name == "std" else "finite"
            raise ValueError(f"patch_embed: {name}[{index}] is {number}; give {wanted} values")
    return numbers


def channel_values(name: str, values: Channels, pixels: Tensor, dtype: torch.dtype) -> Tensor | None:
    """`mean` or `std` as a tensor beside the pixels (B, C, ...), checked; numbers are copied to a GPU once."""
    if values is None:
        return None
    channels = pixels.shape[1]
    if not isinstance(values, Tensor):
        numbers = channel_numbers(name, values, channels)
        if pixels.is_cuda and not torch.compiler.is_compiling() and type(pixels) in (Tensor, torch.nn.Parameter):
            return _device_constants(numbers, dtype, pixels.device)
        return torch.tensor(numbers, dtype=dtype, device=pixels.device)
    if values.shape != (channels,):
        raise ValueError(
            f"patch_embed: {name} has shape {tuple(values.shape)}; expected ({channels},), one number for each channel"
        )
    _check_tensor(name, values, _FLOATS, pixels)
    if values.requires_grad:
        raise ValueError(
            f"patch_embed: {name} requires grad, and no gradient is computed for it; pass {name}.detach()"
        )
    if _checking(pixels.device):
        channel_numbers(name, values.tolist(), channels)
    return values.to(dtype)


@functools.lru_cache(maxsize=64)
def _device_constants(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copied to the device once: a copy a call would wait for it, and could not be captured in a CUDA graph."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


def _rows(keep: Keep, pixels: Tensor, tokens: int) -> Tensor | None:
    """`keep` as indices into the B * N patches of the batch, in the order of the result; -1 for an id out of range."""
    if keep is None:
        return None
    batch = pixels.shape[0]
    if isinstance(keep, RaggedIds):
        _check_ragged(keep, pixels)
        ids = keep.ids
        place = torch.arange(ids.shape[0], device=ids.device, dtype=torch.int32)
        element = torch.bucketize(place, keep.cu_seqlens[1:], right=True)
        inside = (ids >= 0) & (ids < tokens) & (element < batch)
        if torch.compiler.is_compiling():  # fused into the rest there; the operator refuses the rows
            bounds = keep.cu_seqlens
            inside &= (bounds[0] == 0) & (bounds[-1] == ids.shape[0]) & (bounds.diff() >= 0).all()
    else:
        masks = _masks(keep, pixels)
        if native_values(pixels, *masks):
            return _native_rows(masks, tokens)
        ids = torch.stack(masks)  # [M, B, K]
        element = torch.arange(batch, device=ids.device).view(1, batch, 1)
        inside = (ids >= 0) & (ids < tokens)
    if _checking(pixels.device) and not bool(inside.all()):
        at = tuple(torch.nonzero(~inside)[0].tolist())
        raise _out_of_range(ids, at, tokens)
    return torch.where(inside, ids + element * tokens, -1).flatten()


def _out_of_range(ids: Tensor, at: tuple[int, ...], tokens: int) -> ValueError:
    return ValueError(f"patch_embed: kept id {ids[at].item()} is out of range [0, {tokens}), at {list(at)} of keep")


def _native_rows(masks: Sequence[Tensor], tokens: int) -> Tensor:
    """The same in one pass of native code a mask: a dozen torch calls cost a third of embedding a masked clip on a CPU."""
    rows = torch.empty(sum(mask.numel() for mask in masks), dtype=torch.int64)
    start = 0
    for index, mask in enumerate(masks):
        part = rows[start : start + mask.numel()]
        wrong = _native.cpu().kept_rows(_native.view(mask), tokens, _native.view(part))
        if wrong >= 0:
            raise _out_of_range(torch.stack(list(masks)), (index, *divmod(wrong, mask.shape[1])), tokens)
        start += mask.numel()
    return rows


def _masks(keep: Tensor | Sequence[Tensor], pixels: Tensor) -> list[Tensor]:
    if not isinstance(keep, (Tensor, Sequence)):
        raise TypeError(
            f"patch_embed: keep is {keep!r}; give None, an int64 tensor ({pixels.shape[0]}, K), a list of such, "
            "or RaggedIds"
        )
    masks = [keep] if isinstance(keep, Tensor) else list(keep)
    if not masks:
        raise ValueError("patch_embed: keep is an empty list; pass None to keep all patches")
    for index, ids in enumerate(masks):
        name = "keep" if isinstance(keep, Tensor) else f"keep[{index}]"
        _check_tensor(name, ids, (torch.int64,), pixels)
        if ids.ndim != 2 or ids.shape[0] != pixels.shape[0]:
            raise ValueError(
                f"patch_embed: {name} has shape {tuple(ids.shape)}; expected ({pixels.shape[0]}, K), one row an element"
            )
        if ids.shape != masks[0].shape:
            raise ValueError(
                f"patch_embed: {name} has shape {tuple(ids.shape)}, keep[0] {tuple(masks[0].shape)}; give all masks of a list "
                "one length, or pass RaggedIds"
            )
    return masks


def _check_ragged(keep: RaggedIds, pixels: Tensor) -> None:
    _check_tensor("keep.ids", keep.ids, (torch.int64,), pixels)
    _check_tensor("keep.cu_seqlens", keep.cu_seqlens, (torch.int32,), pixels)
    if keep.ids.ndim != 1 or keep.cu_seqlens.shape != (pixels.shape[0] + 1,):
        raise ValueError(
            f"patch_embed: keep has ids of shape {tuple(keep.ids.shape)} and cu_seqlens of shape {tuple(keep.cu_seqlens.shape)}; "
            f"expected (total,) and ({pixels.shape[0] + 1},)"
        )
    if not _checking(pixels.device):
        return
    bounds = keep.cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != keep.ids.shape[0] or bounds != sorted(bounds):
        raise ValueError(
            f"patch_embed: keep.cu_seqlens is {bounds}; it must rise from 0 to {keep.ids.shape[0]}, the number of ids"
        )
