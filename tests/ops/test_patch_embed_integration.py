"""patch_embed inside PyTorch (gradcheck, opcheck, compile, autocast, CUDA graphs) and in memory: guard bands, all is written."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk
from conftest import assert_guards_intact, backend_parameters, guarded, instruction_set, instruction_sets
from jepa_kernels import _native
from jepa_kernels.ops.patch_embed_cpu import CPU_ROWS
from jepa_kernels.reference.patch_embed import normalise, unfold

PATCH = (2, 4, 4)


# What cuda computes, in bfloat16 and float16 alone, is tested in test_patch_embed_cuda.py.
@pytest.fixture(params=backend_parameters(without=("cuda",)))
def place(request):
    """(device, backend)"""
    return request.param


def clip(device="cpu", batch=2):
    """Pixels of 8 patches an element, weight, bias, pos_embed, keep; float32."""
    pixels = torch.randint(0, 256, (batch, 3, 4, 8, 8), dtype=torch.uint8).to(device)
    weight, bias, pos_embed = torch.randn(6, 3, *PATCH), torch.randn(6), torch.randn(8, 6)
    keep = torch.randint(0, 8, (batch, 5))
    return [pixels, *(tensor.to(device) for tensor in (weight, bias, pos_embed, keep))]


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(name, masked):
    shapes = (2, 2, 2, 2, 4), (3, 2, 2, 2, 2), (3,), (2, 3)  # two patches an element
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    keep = torch.tensor([[1, 0, 1], [0, 0, 0]]) if masked else None

    def embed(pixels, weight, bias, pos_embed):
        return jk.patch_embed(pixels, weight, bias, keep=keep, pos_embed=pos_embed, mean=(0.5, 0.4), std=(0.2, 0.3))

    with jk.backend(name):
        assert torch.autograd.gradcheck(embed, inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("full", [False, True])
def test_opcheck(name, full):
    pixels, weight, bias, pos_embed, keep = clip()
    leaves = [tensor.requires_grad_() for tensor in (pixels.float(), weight, bias, pos_embed)]
    mean, std = torch.rand(3), torch.rand(3) + 0.5
    rows = (keep + torch.tensor([[0], [8]])).flatten()
    extras = (leaves[2], rows, leaves[3], mean, std) if full else (None, None, None, None, None)
    with jk.backend(name):
        torch.library.opcheck(torch.ops.jepa_kernels.patch_embed, (leaves[0], leaves[1], *extras))
        grad = torch.randn(10 if full else 16, 6)
        arguments = (grad, leaves[0].detach(), weight.detach(), *((rows, mean, std) if full else (None, None, None)))
        torch.library.opcheck(
            torch.ops.jepa_kernels.patch_embed_backward, (*arguments, torch.float32, [full, True, True, full])
        )


def test_second_derivatives_are_refused():
    pixels, weight, *_ = clip()
    weight.requires_grad_()
    (grad,) = torch.autograd.grad(jk.patch_embed(pixels, weight).square().sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["tensor", "list", "ragged"])
def test_compiles_in_one_graph_without_recompiling_as_keep_changes(place, form):
    pixels, weight, bias, pos_embed, _ = clip(place[0])
    leaves = [tensor.requires_grad_() for tensor in (weight, bias, pos_embed)]

    def embed(pixels, weight, bias, pos_embed, ids, lengths):
        keep = {"tensor": ids, "list": [ids, ids.flip(1)], "ragged": jk.RaggedIds(ids.flatten(), lengths)}[form]
        tokens = jk.patch_embed(
            pixels, weight, bias, keep=keep, pos_embed=pos_embed, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)
        )
        return tokens.square().sum()

    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    with jk.backend(place[1]):
        for repeat, kept in enumerate((5, 3, 7, 2)):
            ids = torch.randint(0, 8, (2, kept), device=place[0])
            torch._dynamo.mark_dynamic(ids, 1)
            lengths = torch.tensor([0, kept, 2 * kept], dtype=torch.int32, device=place[0])
            with torch._dynamo.config.patch(error_on_recompile=repeat > 0):
                got = torch.autograd.grad(compiled(pixels, *leaves, ids, lengths), leaves)
            want = torch.autograd.grad(embed(pixels, *leaves, ids, lengths), leaves)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_call_still_refuses_ids_out_of_range():
    pixels, weight, *_ = clip()
    compiled = torch.compile(
        lambda keep: jk.patch_embed(pixels, weight, keep=keep), fullgraph=True, backend="aot_eager"
    )
    for wrong in (8, -1):
        with pytest.raises(ValueError, match="kept id 1, counted over all of keep, is out of range"):
            compiled(torch.tensor([[0, wrong], [0, 0]]))


def test_autocast_decides_the_dtype_of_the_product(place):
    pixels, weight, bias, pos_embed, keep = clip(place[0])
    dtype = torch.float16 if place[1] == "triton" and place[0] == "cpu" else torch.bfloat16
    weight.requires_grad_()
    with jk.backend(place[1]):
        want = jk.patch_embed(pixels, weight.to(dtype), bias.to(dtype), keep=keep, pos_embed=pos_embed)
        with torch.autocast(place[0], dtype=dtype):
            got = jk.patch_embed(pixels, weight, bias, keep=keep, pos_embed=pos_embed)
            narrow = jk.patch_embed(pixels, weight, bias, keep=keep)
            double = jk.patch_embed(pixels, weight.double(), bias.double()) if place[1] != "triton" else None
        assert got.dtype == torch.float32 and torch.equal(got, want)  # float32 positions promote
        assert narrow.dtype == dtype
        assert double is None or double.dtype == torch.float64
        assert torch.autograd.grad(got.sum(), weight)[0].dtype == torch.float32


def test_every_output_element_is_written(place):
    """torch fills fresh memory with NaN in this mode; a result that kept any would differ."""
    pixels, weight, bias, pos_embed, keep = clip(place[0])
    leaves = [tensor.requires_grad_() for tensor in (pixels.float(), weight, bias, pos_embed)]

    def results():
        with jk.backend(place[1]):
            out = jk.patch_embed(*leaves[:3], keep=keep, pos_embed=leaves[3], std=(4.0, 5.0, 6.0))
            return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    plain = results()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        poisoned = results()
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(poisoned, plain, strict=True):
        torch.testing.assert_close(a, b)


def pack(pixels, rows, patch, out, mean=None, std=None, threads=2):
    view = _native.view
    _native.cpu().pack_patches(view(pixels), view(rows), 0, view(mean), view(std), *patch, view(out), threads)


@pytest.mark.parametrize("level", instruction_sets())
@pytest.mark.parametrize("patch", [(2, 16, 16), (1, 14, 14), (1, 3, 5), (1, 2, 33), (1, 1, 8), (2, 1, 1)])
@pytest.mark.parametrize("decoder_order", [False, True])
def test_packer_at_every_instruction_set(level, patch, decoder_order):
    """Right to the last bit that rounding leaves open, nothing written beyond the rows, one result for any number of threads."""
    pixels = torch.randint(0, 256, (2, 3, 2 * patch[0], 2 * patch[1], 3 * patch[2]), dtype=torch.uint8)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    rows = torch.tensor([0, 23, 7, 7, 12])
    with instruction_set(level):
        for pixel_dtype in (torch.uint8, torch.float32, torch.bfloat16, torch.float16, torch.float64):
            x = pixels.to(pixel_dtype)
            if decoder_order:
                x = x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
            for dtype, tolerance in (
                (torch.float32, 1e-6),
                (torch.bfloat16, 2**-7),
                (torch.float16, 2**-10),
                (torch.float64, 1e-12),
            ):
                want = unfold(normalise(x.double(), mean, std, torch.float64), patch)[rows]
                out, whole = guarded(torch.full(want.shape, torch.nan, dtype=dtype))
                pack(x, rows, patch, out, mean, std)
                assert_guards_intact(whole)
                assert ((out.double() - want).abs() <= tolerance * (1 + want.abs())).all()
                again = torch.full_like(out, torch.nan)
                pack(x, rows, patch, again, mean, std, threads=1)
                assert torch.equal(out, again)


@pytest.mark.parametrize("level", instruction_sets())
def test_packer_keeps_special_values(level):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -0.0, 1e-30, 1.00390625, 1.01171875])
    x = values.repeat(2).view(1, 1, 1, 1, 16)
    with instruction_set(level):
        for dtype in (torch.bfloat16, torch.float16):
            out = torch.zeros(1, 16, dtype=dtype)
            pack(x, None, (1, 1, 16), out)
            torch.testing.assert_close(out[0], x.flatten().to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("level", instruction_sets())
def test_unpacker_at_every_instruction_set(level):
    rows = torch.tensor([3, 0, 3, 1, 3])
    std = torch.tensor([2.0, 4.0, 0.5])
    with instruction_set(level):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            packed = torch.randn(5, 3 * 2 * 2 * 70).to(dtype)
            want = torch.zeros(4, packed.shape[1], dtype=torch.float64).index_add_(0, rows, packed.double())
            pixels, whole = guarded(torch.full((1, 3, 2, 4, 140), torch.nan, dtype=dtype))
            view = _native.view
            _native.cpu().unpack_patches(view(packed), view(rows), view(std), 2, 2, 70, view(pixels), 2)
            assert_guards_intact(whole)
            tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 1e-6)
            scaled = unfold(pixels.double() * std.view(1, 3, 1, 1, 1), (2, 2, 70))
            assert ((scaled - want).abs() <= tolerance * (1 + want.abs())).all()


def test_binding_checks_what_python_hands_over():
    pixels, out = torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8), torch.zeros(1, 96)
    with pytest.raises(ValueError, match="kept id 0, counted over all of keep, is out of range"):
        pack(pixels, torch.tensor([1]), PATCH, out)
    with pytest.raises(ValueError, match="rows: expected int64, got int32"):
        pack(pixels, torch.tensor([0], dtype=torch.int32), PATCH, out)
    with pytest.raises(ValueError, match="out: expected size 96 in dimension 1, got 90"):
        pack(pixels, None, PATCH, torch.zeros(1, 90))
    with pytest.raises(ValueError, match="not a multiple of the patch size 3"):
        pack(pixels, None, (2, 3, 4), out)
    with pytest.raises(ValueError, match="standard deviation is 0"):
        pack(pixels, None, PATCH, out, std=torch.zeros(3))
    with pytest.raises(ValueError, match="rows 0 to 2 of 1 patches"):
        pack(pixels, None, PATCH, torch.zeros(2, 96))


def test_more_rows_than_one_block():
    pixels, weight = torch.randint(0, 256, (1, 1, 100, 200), dtype=torch.uint8), torch.randn(4, 1, 1, 2)
    keep = torch.randint(0, pixels.numel() // 2, (1, CPU_ROWS + 77))
    weight.requires_grad_()
    with jk.backend("cpu"):
        got = jk.patch_embed(pixels, weight, keep=keep)
    want = jk.reference.patch_embed(pixels, weight, keep=keep)
    torch.testing.assert_close(got, want)
    grad = torch.randn_like(want)
    ours, exact = (torch.autograd.grad(out, weight, grad)[0] for out in (got, want))
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-2)


@pytest.mark.gpu
def test_ids_out_of_range_on_a_gpu(monkeypatch):
    pixels, weight, bias, pos_embed, keep = clip("cuda")
    keep[1, 2], keep[0, 0] = 8, -1
    for name in ("reference", "triton"):
        with jk.backend(name):
            out = jk.patch_embed(pixels, weight, bias, keep=keep, pos_embed=pos_embed)
        bad = torch.zeros(2, 5, dtype=torch.bool)
        bad[1, 2] = bad[0, 0] = True
        assert torch.equal(out.isnan().all(-1).cpu(), bad) and torch.equal(out.isnan().any(-1).cpu(), bad)
    monkeypatch.setenv("JEPA_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match=r"kept id -1 is out of range \[0, 8\), at \[0, 0, 0\] of keep"):
        jk.patch_embed(pixels, weight, keep=keep)


@pytest.mark.gpu
def test_graph_capture_and_replay():
    pixels, weight, bias, pos_embed, keep = clip("cuda")
    options = {"keep": keep, "pos_embed": pos_embed, "mean": (1.0, 2.0, 3.0)}
    with jk.backend("triton"):
        jk.patch_embed(pixels, weight, bias, **options)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = jk.patch_embed(pixels, weight, bias, **options)
        keep.copy_(keep.flip(0))
        expected = jk.patch_embed(pixels, weight, bias, **options)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)


@pytest.mark.gpu
def test_more_than_two_to_the_31_pixels():
    pixels = torch.zeros(5, 3, 2, 8192, 16384, dtype=torch.uint8, device="cuda")
    pixels[-1, -1, -1, -16:, -16:] = 200
    weight = torch.randn(8, 3, 2, 16, 16, device="cuda")
    last = 512 * 1024 - 1
    keep = torch.tensor([[0], [0], [0], [0], [last]], device="cuda")
    with jk.backend("triton"):
        got = jk.patch_embed(pixels, weight, keep=keep)[-1, 0]
    torch.testing.assert_close(got, 200 * weight[:, -1, -1].sum((1, 2)), rtol=1e-4, atol=1e-2)
