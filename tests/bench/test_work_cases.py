"""The work of every kind of case against counts made another way.

Matrix products: PyTorch's FlopCounterMode over an unfused form, for masks the true entries of the mask counted one by
one. Elementwise operators: their arithmetic done on numbers that count their operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jepa_kernels.bench import work
from jepa_kernels.bench.cases import Case, objectives, patch_embed, patch_embed_pair
from jepa_kernels.bench.cases import masked_attention as attention
from jepa_kernels.ops.registry import OPERATOR_NAMES

from .test_cases import CLIP, SETTING, TOYS


def products(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def cases_of(operator: str) -> list[Case]:
    return [case for case in TOYS if case.operator == operator and case.dtype == "fp32"]


@pytest.mark.parametrize("case", cases_of("patch_embed"), ids=lambda case: case.id)
def test_patch_embed_is_a_product_of_the_kept_patches(case: Case) -> None:
    inputs = case.make_inputs(SETTING)
    dense = products(lambda: functional.conv3d(_as_clip(inputs.pixels), _as_clip(inputs.weight), stride=_stride(inputs.weight)))
    batch, tokens = inputs.pixels.shape[0], inputs.pixels.shape[0] * math.prod(inputs.grid)
    kept = tokens if inputs.keep is None else inputs.keep.numel()
    products_a_token = 1 if inputs.grad is None else 2  # forward, and the gradient of the weight
    assert case.work(inputs).flops * tokens == products_a_token * dense * kept
    assert case.work(inputs).tokens == kept and case.work(inputs).samples == batch


def test_patch_embed_pair_is_the_product_of_all_patches_and_of_those_kept() -> None:
    shape = patch_embed.Shape(batch=2, frames=4, size=32, patch=8, tubelet=2, dim=16)
    case = patch_embed_pair.make_case("toy", shape, (5, 3), "fp32", set())
    inputs = case.make_inputs(SETTING)
    stride = _stride(inputs.target[0])
    dense = products(lambda: functional.conv3d(inputs.pixels.float(), inputs.target[0], stride=stride))
    tokens, kept = shape.batch * math.prod(shape.grid), sum(mask.numel() for mask in inputs.masks)
    assert case.work(inputs).flops * tokens == dense * (tokens + kept)


def _as_clip(x: torch.Tensor) -> torch.Tensor:
    """Images as clips of one frame, so that one convolution serves both."""
    return (x if x.ndim == 5 else x.unsqueeze(2)).float()


def _stride(weight: torch.Tensor) -> tuple[int, int, int]:
    _, _, *patch = _as_clip(weight).shape
    return patch[0], patch[1], patch[2]


SHAPE = attention.Shape(batch=2, heads=3, head_dim=16, tokens=12)
SHAPES = {
    "dense": SHAPE,
    "rope": replace(SHAPE, grid=(3, 2, 2)),
    "causal": replace(SHAPE, causal_frames=3),
    "ragged": replace(SHAPE, lengths=(3, 7, 1)),
}


def visible(shape: attention.Shape) -> int:
    """True entries of the mask of each sample, one by one."""
    if shape.lengths:
        owner = [sample for sample, length in enumerate(shape.lengths) for _ in range(length)]
        return sum(a == b for a in owner for b in owner)
    per_frame = shape.tokens // shape.causal_frames if shape.causal_frames else shape.tokens
    rows = range(shape.tokens)
    return shape.batch * sum(key // per_frame <= query // per_frame for query in rows for key in rows)


@pytest.mark.parametrize("direction", ["fwd", "fwd-bwd", "bwd"])
@pytest.mark.parametrize("mask", SHAPES)
def test_attention_is_four_products_of_the_visible_pairs(mask: str, direction: str) -> None:
    shape = replace(SHAPES[mask], forward=direction != "bwd", backward=direction != "fwd")
    case = attention.make_case("toy", shape, "fp32", "torch-sdpa", set())
    found = case.work(case.make_inputs(SETTING)).flops
    one = torch.rand(1, shape.heads, 1, shape.head_dim, requires_grad=True)
    pair = products(lambda: functional.scaled_dot_product_attention(one, one, one))  # of one query and one key
    with sdpa_kernel(SDPBackend.MATH):
        out = functional.scaled_dot_product_attention(one, one, one)
    backward = products(lambda: out.sum().backward())
    # An unfused backward has the scores; ours computes them again, half a forward more.
    expected = (pair if shape.forward else 0) + (backward + pair / 2 if shape.backward else 0)
    assert found == visible(shape) * expected


def test_train_step_is_the_products_of_its_eager_form() -> None:
    (case,) = cases_of("train_step")
    inputs = case.make_inputs(SETTING)
    provider = next(p for p in case.providers(SETTING.device) if p.name == case.peer)
    state = provider.setup(inputs)
    provider.run(state)
    counted = products(lambda: provider.run(state))
    shape, config = inputs.shape, inputs.config
    tokens, batch = shape.batch * 32, shape.batch  # a grid of 2 x 4 x 4
    kept = [batch * mask.shape[1] for mask in inputs.masks_enc]
    # The eager form embeds the whole clip for each context and gathers then, forward and for the weight's gradient.
    patch = 2 * 3 * shape.tubelet * shape.patch**2 * config.dim
    counted -= 2 * patch * sum(tokens - k for k in kept)
    # Our count has the scores that a fused backward computes again, half an attention forward.
    for context, target in zip(inputs.masks_enc, inputs.masks_pred, strict=True):
        both = context.shape[1] + target.shape[1]
        counted += 2 * batch * (context.shape[1] ** 2 * config.dim + both**2 * config.predictor_dim)
    assert case.work(inputs).flops == counted


def test_sigreg_products_are_those_of_projection_and_gradient() -> None:
    sets, samples, dim, slices = 2, 6, 8, 5
    x, directions = torch.rand(sets, samples, dim, requires_grad=True), torch.rand(dim, slices)
    counted = products(lambda: (x @ directions).sum().backward())
    assert counted == work.sigreg_flops(sets, samples, dim, slices, 1) - 60 * sets * samples * slices


class Counted(float):
    """A number that counts the arithmetic done on it; with plain numbers too, which stand for constants of a step."""

    done = 0

    def _made(self, value: float) -> Counted:
        Counted.done += 1
        return Counted(value)

    def __add__(self, other: float) -> Counted:
        return self._made(float(self) + float(other))

    def __sub__(self, other: float) -> Counted:
        return self._made(float(self) - float(other))

    def __mul__(self, other: float) -> Counted:
        return self._made(float(self) * float(other))

    def __truediv__(self, other: float) -> Counted:
        return self._made(float(self) / float(other))

    def sqrt(self) -> Counted:
        return self._made(float(self) ** 0.5)

    def __abs__(self) -> Counted:  # a sign bit
        return Counted(abs(float(self)))


def operations(run: Callable[[], object]) -> int:
    Counted.done = 0
    run()
    return Counted.done


def lerp(a: Counted, b: Counted, weight: float) -> Counted:
    return a + (b - a) * weight


def test_ema_operations() -> None:
    assert operations(lambda: lerp(Counted(1), Counted(2), 0.1)) == work.ema_flops(1)


def test_adamw_ema_operations() -> None:
    def update() -> None:
        param, grad, first, second, target, norm = (Counted(v) for v in (1, 2, 3, 4, 5, 0))
        norm = norm + grad * grad
        grad = grad * 0.5  # loss scale and clipping in one factor
        first = lerp(first, grad, 0.1)
        second = second * 0.999 + grad * 0.001 * grad
        step = first / (second.sqrt() * 31.6 + 1e-8) * 1e-3
        param = param * 0.9999 - step
        lerp(target, param, 0.004)

    assert operations(update) == work.adamw_ema_flops(1)


def test_jepa_loss_operations() -> None:
    def difference(pred: Counted, target: Counted, mean: Counted, square: Counted) -> Counted:
        mean = mean + target
        centred = target - 0.5
        square = square + centred * centred
        return pred - (target - 0.5) * 2.0

    def forward() -> None:
        total = Counted(0) + abs(difference(Counted(1), Counted(2), Counted(0), Counted(0)))
        assert total >= 0

    def backward() -> None:
        sign = Counted(1.0 if difference(Counted(1), Counted(2), Counted(0), Counted(0)) > 0 else -1.0)
        assert sign * 0.25 != 0

    assert operations(forward) == work.jepa_loss_flops(1, 1)
    assert operations(forward) + operations(backward) == work.jepa_loss_flops(1, 1, backward=True)


@pytest.mark.parametrize("points", [2, 17])
def test_sigreg_operations(points: int) -> None:
    def turn(c: Counted, s: Counted, c1: Counted, s1: Counted) -> tuple[Counted, Counted]:
        return c * c1 - s * s1, s * c1 + c * s1

    def forward_and_backward() -> None:
        c1, s1 = Counted(0.8), Counted(0.6)
        for gradient in (False, True):
            c, s, cosines, sines, grad = c1, s1, Counted(0), Counted(0), Counted(0)
            for _ in range(points - 1):
                if gradient:
                    grad = grad + (c * 0.3 - s * 0.2)
                else:
                    cosines, sines = cosines + c, sines + s
                c, s = turn(c, s, c1, s1)

    assert operations(forward_and_backward) == work.sigreg_flops(1, 1, 0, 1, points) - 60


def test_every_operator_has_its_count_here() -> None:
    checked = {"patch_embed", "patch_embed_pair", "masked_attention", "ema_update", "adamw_ema", "jepa_loss", "sigreg"}
    assert set(OPERATOR_NAMES) <= checked
    assert CLIP.frames.shape[0] == 5  # the clip that the cases above are cut from


@pytest.mark.parametrize("case", cases_of("objectives"), ids=lambda case: case.id)
def test_objectives_are_the_products_of_their_steps(case: Case) -> None:
    inputs = case.make_inputs(SETTING)
    provider = next(p for p in case.providers(SETTING.device) if p.name == case.peer)
    with provider.context(), torch.backends.mkldnn.flags(enabled=False):  # whose products torch does not count
        state = provider.setup(inputs)
        provider.run(state)
        counted = products(lambda: provider.run(state))
    # Products inside the operators are out of torch's sight: those of attention, of patch embeddings and of SIGReg.
    shape, dim = inputs.shape, 192
    for each in objectives.passes(inputs):
        counted += each.depth * 4 * each.pairs * each.dim * (3.5 if each.backward else 1)
    trained, target = objectives.embedded(inputs)
    counted += (2 * trained + target) * 2 * 3 * (shape.tubelet if shape.frames > 1 else 1) * shape.patch**2 * dim
    views = objectives.GLOBAL_CROPS + objectives.LOCAL_CROPS.get(inputs.objective, 0)
    if inputs.objective == "lejepa":
        counted += work.sigreg_flops(views, shape.batch, 64, objectives.SIGREG_SLICES, objectives.SIGREG_POINTS)
    if inputs.objective == "dino":
        # The pairs of views, and the gradient for the student's; too little to count in the case.
        counted -= 2 * 2 * objectives.GLOBAL_CROPS * views * shape.batch * shape.prototypes
    assert case.work(inputs).flops == pytest.approx(counted, rel=1e-9)


def test_bytes_of_a_block_are_those_of_its_tensors() -> None:
    """Two tokens of width 3, an MLP of twice that: each tensor counted as it is written and read."""
    x, qkv, attended, hidden = 2 * 3, 2 * 9, 2 * 3, 2 * 6
    forward = x + 2 * qkv + 2 * attended + 2 * x + x + 2 * hidden + 2 * x
    weights = 3 * 9 + 3 * 3 + 2 * 3 * 6
    assert work.transformer_bytes(2, 3, 5, mlp_ratio=2.0, value_bytes=2) == 5 * 2 * (forward + weights)
    backward = work.transformer_bytes(2, 3, 5, mlp_ratio=2.0, value_bytes=2, backward=True)
    assert backward == 5 * 2 * (3.5 * forward + 3 * weights)
