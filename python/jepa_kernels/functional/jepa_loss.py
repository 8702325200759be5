"""`jepa_loss`: the prediction loss of JEPA models, straight from the target encoder's output and the mask ids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.jepa_loss import exact_dtype
from ..ops.jepa_loss import loss as _operator
from ..ragged import RaggedIds

Ids = Tensor | RaggedIds
Norm = nn.LayerNorm | tuple[Tensor | None, Tensor | None, float]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PADDING = -1
_OUT_OF_RANGE = -2


def jepa_loss(
    pred: Tensor | Sequence[Tensor],
    target: Tensor,
    ids: Ids | Sequence[Ids] | None = None,
    *,
    kind: str = "l1",
    beta: float = 1.0,
    power: float = 1.0,
    normalize: bool = True,
    eps: float = 1e-5,
    norm: Norm | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    """Mean penalty between predicted tokens and the layer-normalised target tokens that `ids` names.

    Formula: `h = layer_norm(norm(target))[ids]`, `d = pred - h`, and `loss = mean over masks of mean over tokens and
    channels of weights * penalty(d)`, with penalty(d) = `|d|**power / power` for "l1", `d**2 / (2 * beta)` where `|d| <
    beta` and `|d| - beta / 2` elsewhere for "smooth_l1", `d**2` for "l2". The mean divides by the number of tokens,
    whatever their weights.

    Shapes:
        target: (B, N, D); without ids any (..., D).
        ids: None, pred like target; int64 (B, K), pred (B, K, D); `RaggedIds`, pred (total, D); a list of M of these,
            with a list of M predictions, or, for M tensors (B, K), with one prediction (M * B, K, D), mask-major. -1
            marks padding: such a token counts in no mean and gets a zero gradient. A mask without tokens contributes 0.
        weights: one for each token: the shape of pred without D; a list where pred is one.

    Dtypes: pred and target float32, float64, bfloat16 or float16, mixed at will. Norms, differences and sums are
        float32 (float64 if either is float64), and so is the loss; autocast changes nothing. The gradient has pred's
        dtype, rounded once. Only pred gets a gradient.

    Args:
        normalize: apply the parameter-free layer norm with `eps`.
        norm: the target encoder's last layer norm, if it has not been applied yet: a module, or (weight, bias, eps).
        weights: factors of the tokens' losses, as V-JEPA 2.1 weighs context tokens by their distance.

    Raises:
        TypeError: an argument is no tensor, or its dtype is not listed above.
        ValueError: shapes, lengths or devices do not fit; an unknown kind; beta < 0 or power < 1; target, norm or
            weights require grad; an id lies outside [-1, N). Ids on a GPU are checked only with JEPA_KERNELS_CHECK=1;
            without it an id out of range reads nothing and makes the loss, and that token's gradient, NaN.

    Cost: R tokens of D channels: 8 * R * D FLOPs forward, as many backward. Bytes: pred and the R target rows read once;
        backward reads them again and writes the gradient, and nothing but the inputs is kept for it. On cpu the gradient is
        written in the first pass and kept instead; backward hands it out where its incoming gradient is 1, and computes it anew
        where not, which then costs one more R * D written: `pred` as a list takes the mean over masks inside.

    Deterministic: yes, bit for bit, on cpu whatever the number of threads, and on triton.

    Non-finite inputs make the loss non-finite, as in PyTorch, and the gradient NaN where the difference is NaN
    (PyTorch: 0 for L1).

    Source: Assran et al., I-JEPA (2023), smooth L1; Bardes et al., V-JEPA (2024), L1 with exponent; V-JEPA 2.1 (2026),
    weights.

    Example:
        >>> import torch, jepa_kernels as jk
        >>> pred, target = torch.zeros(2, 3, 8, requires_grad=True), torch.randn(2, 10, 8)
        >>> ids = torch.tensor([[0, 4, 9], [1, 2, -1]])
        >>> loss = jk.jepa_loss(pred, target, ids)
        >>> loss.backward()
        >>> loss.shape, bool((pred.grad[1, 2] == 0).all())
        (torch.Size([]), True)
    """
    total = None
    calls = _calls(pred, target, ids, kind, beta, power, normalize, eps, norm, weights)
    for arguments in calls:
        loss = _operator(*arguments.values())
        total = loss if total is None else total + loss
    assert total is not None
    return total


def share_of_loss(pred: Tensor, target: Tensor, ids: Ids | None, share: float, **options: Any) -> Tensor:
    """share * jepa_loss(pred, target, ids, ...), for a sum of such parts.

    With the factor inside, the incoming gradient is 1, which one pass on a CPU serves; a mean taken outside would bring `share`.
    """
    (arguments,) = _calls(pred, target, ids, **options)
    return _operator(*(arguments | {"scale": share * arguments["scale"]}).values())


def prepare(
    pred: Tensor | Sequence[Tensor], target: Tensor, ids: Ids | Sequence[Ids] | None = None, **options: Any
) -> dict[str, Any]:
    """Checks the call and returns the operator's arguments; those of the first prediction where pred is a list."""
    return _calls(pred, target, ids, **options)[0]


def _calls(
    pred: Tensor | Sequence[Tensor],
    target: Tensor,
    ids: Ids | Sequence[Ids] | None,
    kind: str = "l1",
    beta: float = 1.0,
    power: float = 1.0,
    normalize: bool = True,
    eps: float = 1e-5,
    norm: Norm | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
) -> list[dict[str, Any]]:
    """The operator's arguments, one set for each prediction."""
    _check_tensor("target", target, _FLOATS, target)
    _check_constant("target", target)
    preds, masks, all_weights = _matched(pred, ids, weights)
    if target.ndim < 2 or (ids is not None and target.ndim != 3):
        raise ValueError(f"jepa_loss: target has shape {tuple(target.shape)}; expected (B, N, D)")
    operator_kind, parameter = _penalty(kind, beta, power)
    rows_of_target = _as_rows(target)
    calls = []
    for index, (z, part, weight) in enumerate(zip(preds, masks, all_weights, strict=True)):
        name = f"pred[{index}]" if len(preds) > 1 else "pred"
        _check_tensor(name, z, _FLOATS, target)
        exact = exact_dtype(z, target)
        rows = _rows(part, target)
        _check_pred(name, z, target, part)
        norm_weight, norm_bias, norm_eps = _norm(norm, target, exact)
        coefficients, scale = _coefficients(rows, _weight(weight, z, target, exact), len(part), z, exact)
        calls.append(
            {
                "pred": _as_rows(z),
                "target": rows_of_target,
                "rows": None if rows is None else rows.flatten(),
                "weights": coefficients,
                "norm_weight": norm_weight,
                "norm_bias": norm_bias,
                "norm_eps": norm_eps,
                "kind": operator_kind,
                "parameter": parameter,
                "eps": float(eps) if normalize else None,
                "scale": scale / len(preds),
            }
        )
    return calls


def _matched(
    pred: Tensor | Sequence[Tensor], ids: Ids | Sequence[Ids] | None, weights: Tensor | Sequence[Tensor] | None
) -> tuple[list[Tensor], list[list[Ids | None]], list[Tensor | None]]:
    """Predictions, the masks of each, and its weights."""
    masks: list[Ids | None] = list(ids) if isinstance(ids, Sequence) else [ids]
    if not masks:
        raise ValueError("jepa_loss: ids is an empty list; pass at least one mask, or None for all tokens")
    preds = [pred] if isinstance(pred, Tensor) else list(pred)
    all_weights: list[Tensor | None] = [None] * len(preds)
    if weights is not None:
        all_weights = [weights] if isinstance(weights, Tensor) else list(weights)
    if not isinstance(pred, Tensor) and len(preds) != len(masks):
        raise ValueError(
            f"jepa_loss: {len(preds)} predictions but {len(masks)} masks; pass one prediction for each mask"
        )
    if len(all_weights) != len(preds):
        raise ValueError(
            f"jepa_loss: {len(preds)} predictions but {len(all_weights)} weights; pass one tensor for each"
        )
    groups = [masks] if isinstance(pred, Tensor) else [[mask] for mask in masks]
    return preds, groups, all_weights


def _as_rows(tensor: Tensor) -> Tensor:
    """(..., D) as (rows, D) with last stride 1; a view wherever the strides allow it."""
    matrix = tensor.reshape(-1, tensor.shape[-1]) if tensor.shape[-1] else tensor.reshape(tensor.shape[:-1].numel(), 0)
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] <= 1 else matrix.contiguous()


def _check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...], target: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"jepa_loss: {name} is {type(value).__name__}, not a tensor")
    if value.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"jepa_loss: {name} has dtype {value.dtype}; convert it to one of {names}")
    if value.device != target.device:
        raise ValueError(f"jepa_loss: {name} is on {value.device}, target on {target.device}; move them together")


def _check_constant(name: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"jepa_loss: {name} requires grad, and no gradient is computed for it; pass {name}.detach()")


def _penalty(kind: str, beta: float, power: float) -> tuple[str, float]:
    if kind not in ("l1", "smooth_l1", "l2"):
        raise ValueError(f"jepa_loss: unknown kind {kind!r}: one of l1, smooth_l1, l2")
    if power != 1 and kind != "l1":
        raise ValueError(f"jepa_loss: power = {power} has a meaning only for kind='l1', got kind={kind!r}")
    if not (power >= 1 and power < float("inf")):  # false for NaN, too
        raise ValueError(f"jepa_loss: power must be a finite number of at least 1, got {power}")
    if not (beta >= 0 and beta < float("inf")):
        raise ValueError(f"jepa_loss: beta must be a finite number of at least 0, got {beta}")
    if kind == "l2":
        return "square", 1.0
    if kind == "smooth_l1":
        return ("smooth_l1", float(beta)) if beta > 0 else ("absolute", 1.0)
    if power == 2:
        return "square", 0.5
    return ("absolute", 1.0) if power == 1 else ("power", float(power))


def _check_pred(name: str, pred: Tensor, target: Tensor, masks: Sequence[Ids | None]) -> None:
    first, width = masks[0], target.shape[-1]
    if first is None:
        expected: tuple[int, ...] = tuple(target.shape)
    elif isinstance(first, RaggedIds):
        expected = (first.ids.shape[0], width)
    else:
        expected = (len(masks) * first.shape[0], first.shape[1], width)
    if tuple(pred.shape) != expected:
        raise ValueError(f"jepa_loss: {name} has shape {tuple(pred.shape)}; expected {expected}, from ids and target")


def _checking(device: torch.device) -> bool:
    """Whether values are looked at here: always on a CPU; on a GPU this waits for the device, so only when asked to."""
    if torch.compiler.is_compiling():
        return False
    return device.type == "cpu" or os.environ.get("JEPA_KERNELS_CHECK") == "1"


def _rows(masks: Sequence[Ids | None], target: Tensor) -> Tensor | None:
    """Rows of the flattened target, [M, R / M]: -1 for padding, -2 for an id out of range."""
    if masks[0] is None:
        return None
    batch, tokens = target.shape[0], target.shape[1]
    if isinstance(masks[0], RaggedIds):
        if len(masks) > 1:
            raise ValueError(
                f"jepa_loss: {len(masks)} ragged masks need {len(masks)} predictions; pass them as a list"
            )
        ids, element = _ragged(masks[0], target)
    else:
        ids = _stacked(masks, target)  # [M, B, K]
        element = torch.arange(batch, device=ids.device).view(1, batch, 1)
        if _checking(ids.device) and ids.numel() > 0:  # the usual case, in few operators
            low, high = torch.aminmax(ids)
            if int(low) >= 0 and int(high) < tokens:
                return (ids + element * tokens).flatten(1)
    inside = (ids >= 0) & (ids < tokens) & (element < batch)
    padding = ids == _PADDING
    if _checking(target.device) and not bool((inside | padding).all()):
        at = torch.nonzero(~(inside | padding))[0].tolist()
        raise ValueError(f"jepa_loss: id {ids[tuple(at)].item()} is out of range [-1, {tokens}), at {at} of ids")
    rows = torch.where(inside, ids + element * tokens, torch.where(padding, _PADDING, _OUT_OF_RANGE))
    return rows.flatten(1) if rows.ndim == 3 else rows.unsqueeze(0)


def _stacked(masks: Sequence[Ids | None], target: Tensor) -> Tensor:
    tensors: list[Tensor] = []
    for index, ids in enumerate(masks):
        name = f"ids[{index}]" if len(masks) > 1 else "ids"
        _check_tensor(name, ids, (torch.int64,), target)
        assert isinstance(ids, Tensor)
        if ids.ndim != 2 or ids.shape[0] != target.shape[0]:
            raise ValueError(
                f"jepa_loss: {name} has shape {tuple(ids.shape)}; expected ({target.shape[0]}, K), one row an element"
            )
        if tensors and ids.shape != tensors[0].shape:
            raise ValueError(
                f"jepa_loss: {name} has shape {tuple(ids.shape)}, ids[0] {tuple(tensors[0].shape)}; give masks "
                "of several lengths one prediction each, as a list"
            )
        tensors.append(ids)
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _ragged(ids: RaggedIds, target: Tensor) -> tuple[Tensor, Tensor]:
    _check_tensor("ids.ids", ids.ids, (torch.int64,), target)
    _check_tensor("ids.cu_seqlens", ids.cu_seqlens, (torch.int32,), target)
    if ids.ids.ndim != 1 or ids.cu_seqlens.shape != (target.shape[0] + 1,):
        raise ValueError(
            f"jepa_loss: ids has ids of shape {tuple(ids.ids.shape)} and cu_seqlens of shape "
            f"{tuple(ids.cu_seqlens.shape)}; expected (total,) and ({target.shape[0] + 1},)"
        )
    if _checking(target.device):
        bounds = ids.cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] != ids.ids.shape[0] or bounds != sorted(bounds):
            raise ValueError(
                f"jepa_loss: cu_seqlens is {bounds}; it must rise from 0 to {ids.ids.shape[0]}, the number of ids"
            )
    place = torch.arange(ids.ids.shape[0], device=ids.ids.device, dtype=torch.int32)
    return ids.ids, torch.bucketize(place, ids.cu_seqlens[1:], right=True)


def _norm(norm: Norm | None, target: Tensor, exact: torch.dtype) -> tuple[Tensor | None, Tensor | None, float | None]:
    if norm is None:
        return None, None, None
    weight: Tensor | None
    bias: Tensor | None
    weight, bias, norm_eps = (norm.weight, norm.bias, norm.eps) if isinstance(norm, nn.LayerNorm) else norm
    values = []
    for name, value in (("norm's weight", weight), ("norm's bias", bias)):
        if value is not None:
            _check_tensor(name, value, _FLOATS, target)
            _check_constant(name, value)
            if value.shape != target.shape[-1:]:
                raise ValueError(f"jepa_loss: {name} has shape {tuple(value.shape)}; expected ({target.shape[-1]},)")
            value = value.detach().to(exact).contiguous()
        values.append(value)
    return values[0], values[1], float(norm_eps)


def _weight(weight: Tensor | None, pred: Tensor, target: Tensor, exact: torch.dtype) -> Tensor | None:
    if weight is None:
        return None
    _check_tensor("weights", weight, _FLOATS, target)
    _check_constant("weights", weight)
    if weight.shape != pred.shape[:-1]:
        raise ValueError(
            f"jepa_loss: weights have shape {tuple(weight.shape)}; expected {tuple(pred.shape[:-1])}, one a token"
        )
    return weight.to(exact).flatten()


def _coefficients(
    rows: Tensor | None, weight: Tensor | None, masks: int, pred: Tensor, exact: torch.dtype
) -> tuple[Tensor | None, float]:
    """What multiplies each row's sum of penalties: a tensor, or None, times a number. The means leave out padding."""
    count, width = pred.shape[:-1].numel(), max(pred.shape[-1], 1)
    may_be_padded = rows is not None and (
        not _checking(rows.device) or (rows.numel() > 0 and int(rows.amin()) == _PADDING)
    )
    if rows is None or not may_be_padded:
        return weight, 1.0 / (max(count, 1) * width)
    kept = (rows != _PADDING).sum(1, keepdim=True).clamp(min=1)  # [M, 1]
    each = kept.to(exact).reciprocal().expand_as(rows).reshape(-1).contiguous()
    return (each if weight is None else each * weight), 1.0 / (masks * width)
