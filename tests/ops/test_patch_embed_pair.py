"""patch_embed_pair on every backend: equal to two patch embeddings, with all gradients and without those nobody asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jepa_kernels as jk
from conftest import backend_parameters
from jepa_kernels.ops.patch_embed_cpu import CPU_ROWS

MOMENTS = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


@pytest.fixture(params=backend_parameters(without=("cuda",)))
def place(request):
    """(device, backend)"""
    return request.param


def problem(device="cpu", dtype=torch.float32, batch=2, shape=(3, 4, 32, 48), patch=(2, 16, 16)):
    """uint8 pixels, target and context parameters (weight, bias, pos_embed), tokens an element."""
    pixels = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8).to(device)
    tokens = shape[-3] // patch[0] * (shape[-2] // patch[1]) * (shape[-1] // patch[2])
    sets = []
    for width in (24, 40):
        weight = torch.randn(width, shape[0], *patch) * 0.03
        sets.append([t.to(device, dtype) for t in (weight, torch.randn(width), torch.randn(tokens, width))])
    return pixels, *sets, tokens


def pair(pixels, target, context, keep, function=None):
    function = function or jk.patch_embed_pair
    positions = {"target_pos_embed": target[2], "context_pos_embed": context[2]}
    return function(pixels, *target[:2], *context[:2], keep=keep, **positions, **MOMENTS)


def keeps(batch, tokens, device):
    """A tensor, masks of different length, ragged ids: unsorted, with repetitions."""
    masks = [torch.randint(0, tokens, (batch, kept), device=device) for kept in (5, 0, 2)]
    entries = [torch.randint(0, tokens, (3 * b,), device=device) for b in range(batch)]
    return {"tensor": masks[0], "list": masks, "ragged": jk.RaggedIds.from_list(entries)}


@pytest.mark.parametrize("form", ["tensor", "list", "ragged"])
@pytest.mark.parametrize("float_pixels", [False, True])
def test_equals_two_embeddings_with_all_gradients(place, form, float_pixels):
    pixels, target, context, tokens = problem(place[0])
    keep = keeps(2, tokens, place[0])[form]
    leaves = [tensor.requires_grad_() for tensor in (*target, *context)]
    if float_pixels:
        pixels = pixels.float().requires_grad_()
        leaves.append(pixels)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact_pixels = doubles[6] if float_pixels else pixels
    want = pair(exact_pixels, doubles[:3], doubles[3:6], keep, jk.reference.patch_embed_pair)
    with jk.backend(place[1]):
        got = pair(pixels, target, context, keep)
    flat = [(t[0], *t[1]) if form == "list" else t for t in (got, want)]
    for a, b in zip(*flat, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    grads = [torch.randn_like(b) for b in flat[1]]
    ours = torch.autograd.grad(flat[0], leaves, [g.float() for g in grads])
    for a, b in zip(ours, torch.autograd.grad(flat[1], doubles, grads), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_the_target_usually_takes_no_gradient(place):
    pixels, target, context, tokens = problem(place[0])
    keep = torch.randint(0, tokens, (2, 3), device=place[0])
    for tensor in context[:2]:
        tensor.requires_grad_()
    with jk.backend(place[1]):
        every, kept = pair(pixels, target, context, keep)
        alone = jk.patch_embed(pixels, *context[:2], keep=keep, pos_embed=context[2], **MOMENTS)
        grads = torch.autograd.grad(kept.square().sum(), context[:2])
        wanted = torch.autograd.grad(alone.square().sum(), context[:2])
    for a, b in zip((kept, *grads), (alone, *wanted), strict=True):
        torch.testing.assert_close(a, b)
    assert not every.isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_error_within_twice_pytorch(place, dtype):
    pixels, target, context, tokens = problem(place[0], dtype, shape=(3, 4, 64, 64))
    keep = torch.randint(0, tokens, (2, 9), device=place[0])

    def exact(values):
        return [value.double() for value in values]

    want = pair(pixels, exact(target), exact(context), keep, jk.reference.patch_embed_pair)
    theirs = pair(pixels, target, context, keep, jk.reference.patch_embed_pair)
    with jk.backend(place[1]):
        ours = pair(pixels, target, context, keep)
    for a, b, c in zip(ours, theirs, want, strict=True):
        assert a.dtype == b.dtype
        error, allowed = (a.double() - c).abs(), (b.double() - c).abs()
        assert error.max() <= 2 * allowed.max() and error.square().mean() <= 4 * allowed.square().mean()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_opcheck(name):
    pixels, target, context, _ = problem()
    values = [tensor.requires_grad_() for tensor in (pixels.float(), *target, *context)]
    rows = torch.tensor([3, 0, 3, 11])
    with jk.backend(name):
        torch.library.opcheck(torch.ops.jepa_kernels.patch_embed_pair, (*values, rows, torch.rand(3), torch.rand(3) + 0.5))


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gradcheck(name):
    shapes = ((2, 2, 2, 2, 4), (3, 2, 2, 2, 2), (3,), (2, 3), (2, 2, 2, 2, 2), (2,), (2, 2))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    keep = torch.tensor([[1, 0, 1], [0, 0, 0]])

    def embed(pixels, *weights):
        return jk.patch_embed_pair(
            pixels, *weights[:2], *weights[3:5], keep=keep, target_pos_embed=weights[2],
            context_pos_embed=weights[5], std=(0.2, 0.3),
        )  # fmt: skip

    with jk.backend(name):
        assert torch.autograd.gradcheck(embed, inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_in_one_graph_without_recompiling_as_keep_changes(place):
    pixels, target, context, tokens = problem(place[0])

    def embed(ids, weight):
        every, kept = pair(pixels, target, [weight, *context[1:]], [ids, ids[:, :1]])
        return every.sum() + kept[0].square().sum() + kept[1].square().sum()

    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    weight = context[0].requires_grad_()
    with jk.backend(place[1]):
        for repeat, kept in enumerate((5, 3, 7)):
            ids = torch.randint(0, tokens, (2, kept), device=place[0])
            torch._dynamo.mark_dynamic(ids, 1)
            with torch._dynamo.config.patch(error_on_recompile=repeat > 0):
                got = torch.autograd.grad(compiled(ids, weight), weight)
            torch.testing.assert_close(got, torch.autograd.grad(embed(ids, weight), weight))


def test_more_patches_than_one_block():
    pixels = torch.randint(0, 256, (1, 1, 100, 200), dtype=torch.uint8)
    weights = [torch.randn(4, 1, 1, 2) for _ in range(2)]
    assert pixels.numel() // 2 > CPU_ROWS
    keep = torch.randint(0, pixels.numel() // 2, (1, 300))
    with jk.backend("cpu"):
        got = jk.patch_embed_pair(pixels, weights[0], None, weights[1], None, keep=keep)
    want = jk.reference.patch_embed_pair(pixels, weights[0], None, weights[1], None, keep=keep)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("empty", ["keep", "batch"])
def test_empty_inputs(place, empty):
    pixels, target, context, _ = problem(place[0], batch=0 if empty == "batch" else 2)
    keep = torch.zeros(pixels.shape[0], 0, dtype=torch.int64, device=place[0])
    context[0].requires_grad_()
    with jk.backend(place[1]):
        every, kept = pair(pixels, target, context, keep)
    assert every.shape == (pixels.shape[0], 12, 24) and kept.shape == (pixels.shape[0], 0, 40)
    assert torch.equal(torch.autograd.grad(kept.sum(), context[0])[0], torch.zeros_like(context[0]))


def test_same_bits_every_time_and_every_element_written(place):
    pixels, target, context, tokens = problem(place[0])
    keep = torch.randint(0, tokens, (2, 30), device=place[0])
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        with jk.backend(place[1]):
            results = [pair(pixels, target, context, keep) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for every, kept in results:
        assert torch.equal(every, results[0][0]) and torch.equal(kept, results[0][1])


def test_weights_of_two_types_and_autocast():
    pixels, target, context, _ = problem()
    keep = torch.tensor([[0, 1], [2, 3]])
    every, kept = jk.patch_embed_pair(pixels, target[0], None, context[0].bfloat16(), None, keep=keep)
    assert every.dtype == torch.float32 and kept.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        every, kept = jk.patch_embed_pair(pixels, target[0], None, context[0], None, keep=keep)
    assert every.dtype == kept.dtype == torch.bfloat16


@given(st.integers(1, 3), st.integers(0, 6), st.sampled_from([torch.uint8, torch.float32]), st.booleans())
def test_any_shape_on_the_cpu(batch, kept, pixel_dtype, decoder_order):
    pixels, target, context, tokens = problem(batch=batch, shape=(3, 2, 10, 21), patch=(1, 5, 7))
    pixels = pixels.to(pixel_dtype)
    if decoder_order:
        pixels = pixels.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    keep = torch.randint(0, tokens, (batch, kept))
    with jk.backend("cpu"):
        got = pair(pixels, target, context, keep)
    for a, b in zip(got, pair(pixels, target, context, keep, jk.reference.patch_embed_pair), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"keep": None}, ValueError, "patch_embed_pair: keep is None; give the ids"),
        ({"keep": []}, ValueError, "keep is an empty list"),
        ({"keep": torch.tensor([[0], [12]])}, ValueError, r"kept id 12 is out of range \[0, 12\)"),
        ({"keep": torch.tensor([[0]])}, ValueError, r"keep has shape \(1, 1\); expected \(2, K\)"),
        ({"keep": 3}, TypeError, "keep is 3; give None, an int64 tensor"),
        ({"weight": torch.zeros(8, 3, 2, 8, 8)}, ValueError, "both must take the same patches"),
        ({"std": (1.0, 0.0, 1.0)}, ValueError, r"std\[1\] is 0.0; give positive finite values"),
    ],
)
def test_bad_input(change, error, message):
    pixels, target, context, _ = problem()
    options = {"keep": torch.tensor([[0], [1]]), **change}
    weight = options.pop("weight", context[0])
    with pytest.raises(error, match=message):
        jk.patch_embed_pair(pixels, target[0], None, weight, None, **options)


def test_explains_itself(capsys):
    pixels, target, context, _ = problem()
    jk.explain("patch_embed_pair", pixels, *target[:2], *context[:2], keep=torch.tensor([[0], [1]]))
    assert "patch_embed_pair: cpu (automatic)" in capsys.readouterr().out
