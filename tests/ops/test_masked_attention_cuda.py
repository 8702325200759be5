"""The CUDA C++ attention: what it says of itself anywhere; on a GPU, every mask, layout and head dim against float64."""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import jepa_kernels as jk
from jepa_kernels import _native, backends
from jepa_kernels.bench.providers import kernel_providers
from jepa_kernels.functional.masked_attention import prepare
from jepa_kernels.ops import cuda_paths, registry
from jepa_kernels.ops import masked_attention_cuda as cuda
from jepa_kernels.ops.masked_attention import Extras

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.bfloat16, torch.float16)
CUDA = registry.get("masked_attention").backends["cuda"]
gpu = pytest.mark.gpu
REST = ["jk-triton", "jk-cpu", "jk-reference"]


def test_head_dims_are_those_of_the_sources():
    source = (ROOT / "csrc" / "cuda" / "masked_attention_launch.h").read_text(encoding="utf-8")
    assert tuple(map(int, re.findall(r"case (\d+):", source))) == cuda.HEAD_DIMS


@pytest.mark.parametrize(
    ("dtype", "head_dim", "bool_mask", "reason"),
    [
        (torch.float32, 64, False, "bfloat16 or float16"),
        (torch.float64, 64, False, "bfloat16 or float16"),
        (torch.bfloat16, 24, False, "compiled for 32, 64, 80, 88"),
        (torch.float16, 128, False, "compiled for 32, 64, 80, 88"),
        (torch.bfloat16, 64, True, "no boolean masks"),
    ],
)
def test_says_what_it_lacks(dtype, head_dim, bool_mask, reason):
    q = torch.empty(1, 2, 5, head_dim, dtype=dtype, device="meta")
    assert reason in cuda.why_not_kernel(q, torch.empty(1, 2, 5, 5, device="meta") if bool_mask else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", cuda.HEAD_DIMS)
def test_has_no_reason_against_what_it_holds(dtype, head_dim):
    assert cuda.why_not_kernel(torch.empty(1, 2, 5, head_dim, dtype=dtype, device="meta"), None) is None


def test_gradients_need_triton(monkeypatch):
    q, leaf = torch.zeros(1, 1, 2, 32), torch.zeros(1, 1, 2, 32, requires_grad=True)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert cuda.why_no_gradient(q, q, q) is None
    assert "computed by triton: triton is not installed" in cuda.why_no_gradient(q, leaf, q)
    with pytest.raises(backends.BackendError, match="computed by triton: triton is not installed"):
        CUDA.functions["backward"](*[q] * 9, Extras(*[None] * len(Extras._fields)))


class Recorder:
    """Stands for the native module."""

    def masked_attention_forward(self, *arguments):
        self.arguments = arguments


@pytest.mark.parametrize("path", cuda_paths.CUDA_PATHS)
def test_hands_over_rows_that_can_be_read_whole(path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(_native, "cuda", lambda: recorder)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 5}))
    wide = torch.randn(2, 9, 3, 4, 36).to(torch.bfloat16)
    packed = torch.randn(2, 9, 3, 4, 32).to(torch.bfloat16)
    q = wide.unbind(2)[0].transpose(1, 2)[..., :32]  # rows 36 values apart: not all at a multiple of 16 bytes
    k, v = (part.transpose(1, 2) for part in packed.unbind(2)[1:])
    arguments = prepare(q, k, v, mask=jk.FrameCausal(3), rope=jk.Rope3D(torch.rand(9, 3)))
    extras = Extras(*list(arguments.values())[3:])
    out, lse = torch.empty(2, 4, 9, 32, dtype=q.dtype), torch.empty(2, 4, 9)
    with cuda_paths.cuda_path(path):
        CUDA.functions["forward"](q, k, v, out, lse, extras)
    views, scalars = recorder.arguments[:8], recorder.arguments[8:11]
    assert views[0][0] % 16 == 0 and views[0][3] == (1152, 288, 32, 1)  # a copy
    assert views[1:5] == tuple(_native.view(x) for x in (k, v, out, lse))  # the caller's own memory
    assert views[5][2:4] == ((2, 4, 9, 32), (1152, 288, 32, 1)) and views[6:8] == (None, None)
    assert scalars == (0, 3, 0) and recorder.arguments[15:] == (extras.scale, cuda_paths.CUDA_PATHS[path], 5)
    tables = (extras.q_cos, extras.q_sin, extras.k_cos, extras.k_sin)
    assert recorder.arguments[11:15] == tuple(_native.view(x) for x in tables)


def test_keys_that_heads_share_are_copied_for_the_copy_engine_alone():
    shared = torch.zeros(2, 1, 9, 32).bfloat16().expand(2, 3, 9, 32)
    assert cuda._readable(shared) is shared and cuda._readable(shared[:, :1], repeats=False).data_ptr() == shared.data_ptr()
    assert cuda._readable(shared, repeats=False).stride() == (864, 288, 32, 1)


@pytest.fixture
def tables(monkeypatch):
    """Device 0 is an sm_90 whose table names the warpgroup, device 1 one whose table says nothing."""
    monkeypatch.setattr("jepa_kernels.hardware.architecture", lambda device: f"table_{device}")
    named = {"table_0": {"masked_attention": {"cuda_path": "warpgroup"}}, "table_1": {"automatic": {}}}
    monkeypatch.setattr(backends, "tuned_table", named.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda_paths.tuned_path.cache_clear()
    yield torch.device("cuda", 0), torch.device("cuda", 1)
    cuda_paths.tuned_path.cache_clear()


def test_the_tuned_table_chooses_the_path_but_where_one_is_forced(tables):
    assert [cuda_paths.path_code("masked_attention", device) for device in tables] == [1, 0]
    for path, code in cuda_paths.CUDA_PATHS.items():
        with cuda_paths.cuda_path(path):
            assert [cuda_paths.path_code("masked_attention", device) for device in tables] == [code, code]


def test_the_benchmark_times_the_path_that_is_not_chosen_too(tables, monkeypatch):
    run = torch.empty_like
    names = [[p.name for p in kernel_providers("masked_attention", device, run)] for device in tables]
    assert names == [["jk-cuda", "jk-cuda-warp", *REST], ["jk-cuda", "jk-cuda-warpgroup", *REST]]
    other = kernel_providers("masked_attention", tables[1], run)[1]
    with other.context():
        assert backends.forced("masked_attention") == "cuda" and cuda_paths.path_code("masked_attention", tables[1]) == 1
    for operators in ("ema_update", ("patch_embed", "masked_attention")):
        assert [p.name for p in kernel_providers(operators, tables[0], run)] == ["jk-cuda", *REST]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert [p.name for p in kernel_providers("masked_attention", tables[1], run)] == ["jk-cuda", *REST]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [p.name for p in kernel_providers("masked_attention", tables[1], run)] == ["jk-cuda", *REST]


@pytest.fixture(params=cuda_paths.CUDA_PATHS)
def path(request):
    """Each kernel in turn."""
    if request.param == "warpgroup" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the warpgroup kernel needs compute capability 9.0")
    with cuda_paths.cuda_path(request.param):
        yield request.param


# name -> (batch, heads, queries, keys, mask, rope); each kernel takes small tiles for few or short, large ones for many or long
SHAPES = {
    "short": (2, 3, 70, 70, None, True),
    "long": (1, 4, 1568, 1568, None, True),
    "long-frames": (1, 2, 1290, 1290, jk.FrameCausal(258), True),
    "context": (4, 16, 516, 516, None, True),
    "cross": (2, 2, 33, 258, None, False),
    "frames": (2, 16, 516, 516, jk.FrameCausal(129), True),
    "cached": (2, 4, 258, 1290, jk.FrameCausal(258, 4), True),
    "frames-beyond-the-keys": (1, 2, 140, 105, jk.FrameCausal(35), False),
    "padded": (3, 8, 300, 300, (0, 299, 41), False),
}


def problem(name, dtype, head_dim, requires_grad=False):
    batch, heads, queries, keys, mask, rope = SHAPES[name]
    generator = torch.Generator("cuda").manual_seed(3)
    q, k, v = (
        torch.randn(batch, tokens, heads, head_dim, device="cuda", generator=generator).to(dtype).transpose(1, 2)
        for tokens in (queries, keys, keys)
    )
    if isinstance(mask, tuple):
        mask = jk.KeyPadding(torch.tensor(mask, device="cuda"))
    positions = torch.arange(keys, device="cuda").float()[:, None] % torch.tensor([7.0, 11.0, 13.0], device="cuda")
    embedding = jk.Rope3D(positions, positions[keys - queries :]) if rope else None
    leaves = [x.detach().requires_grad_(requires_grad) for x in (q, k, v)]
    return leaves, {"mask": mask, "rope": embedding}


def dense(mask, queries, keys):
    if mask is None:
        return None
    return (mask.to_dense(queries, keys) if isinstance(mask, jk.FrameCausal) else mask.to_dense(keys)).to("cuda")


@gpu
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", cuda.HEAD_DIMS)
def test_error_within_twice_pytorch(path, name, dtype, head_dim):
    inputs, options = problem(name, dtype, head_dim)
    with jk.backend("cuda"):
        ours = jk.masked_attention(*inputs, **options)
    exact = jk.reference.masked_attention(*(x.double() for x in inputs), **options)
    q, k, v = inputs
    if options["rope"] is not None:
        tables = options["rope"].tables(head_dim, dtype)
        pairs = [x.float().unflatten(-1, (-1, 2)).flip(-1).flatten(-2) for x in (q, k)]
        q = (q.float() * tables.q_cos + pairs[0] * tables.q_sin).to(dtype)
        k = (k.float() * tables.k_cos + pairs[1] * tables.k_sin).to(dtype)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=dense(options["mask"], q.shape[2], k.shape[2]))
    error, allowed = (ours.double() - exact).abs(), (theirs.nan_to_num().double() - exact).abs()
    assert error.max() <= 2 * allowed.max()
    assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt()


@gpu
@pytest.mark.parametrize("lengths", [[5, 0, 64, 1, 33], [516] * 12], ids=str)
@pytest.mark.parametrize("head_dim", cuda.HEAD_DIMS)
def test_ragged_packed_equals_triton_with_gradients(path, lengths, head_dim):
    qkv = torch.randn(sum(lengths), 3, 4, head_dim, device="cuda").bfloat16().requires_grad_()
    mask = jk.Ragged.from_lengths(lengths, device="cuda")
    rope = jk.Rope3D(torch.randint(0, 9, (sum(lengths), 3), device="cuda").float())
    results = []
    for name in ("cuda", "triton"):
        with jk.backend(name):
            out = jk.masked_attention(qkv, mask=mask, rope=rope)
            results.append([out, *torch.autograd.grad(out.sum(), qkv)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@gpu
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_equal_those_of_triton(path, name):
    inputs, options = problem(name, torch.bfloat16, 64, requires_grad=True)
    results = []
    for backend in ("cuda", "triton"):
        with jk.backend(backend):
            out = jk.masked_attention(*inputs, **options)
            results.append([out, *torch.autograd.grad(out.sum(), inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@gpu
@pytest.mark.parametrize("head_dim", cuda.HEAD_DIMS)
def test_reads_strides_as_they_are(path, head_dim):
    """Keys that all heads share (a stride of 0), values in wider rows, positions of every batch element."""
    q, k, v = (torch.randn(2, 300, heads, head_dim + 8, device="cuda").bfloat16().transpose(1, 2) for heads in (3, 1, 3))
    q, k, v = q[..., :head_dim].contiguous(), k[..., :head_dim].expand(2, 3, 300, head_dim), v[..., 8:]
    rope = jk.Rope3D(torch.randint(0, 9, (2, 300, 3), device="cuda").float())
    with jk.backend("cuda"):
        ours = jk.masked_attention(q, k, v, rope=rope)
        plain = jk.masked_attention(q, k, v)
    exact, exact_plain = (jk.reference.masked_attention(q.double(), k.double(), v.double(), rope=r) for r in (rope, None))
    torch.testing.assert_close(ours.double(), exact, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(plain.double(), exact_plain, rtol=2e-2, atol=2e-2)


@gpu
@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_any_scale(path, scale):
    inputs, _ = problem("short", torch.float16, 80)
    with jk.backend("cuda"):
        ours = jk.masked_attention(*inputs, scale=scale)
    exact = jk.reference.masked_attention(*(x.double() for x in inputs), scale=scale)
    torch.testing.assert_close(ours.double(), exact, rtol=2e-3, atol=2e-3)


@gpu
@pytest.mark.parametrize("head_dim", cuda.HEAD_DIMS)
def test_unseen_keys_never_matter_and_rows_without_keys_are_zero(path, head_dim):
    (q, k, v), _ = problem("padded", torch.bfloat16, head_dim)
    mask = jk.KeyPadding(torch.tensor([0, 299, 41], device="cuda"))
    unseen = torch.arange(300, device="cuda")[None, None, :, None] >= mask.lengths[:, None, None, None]
    with jk.backend("cuda"):
        clean = jk.masked_attention(q, k, v, mask=mask)
        assert torch.equal(clean, jk.masked_attention(q, *(x.masked_fill(unseen, float("nan")) for x in (k, v)), mask=mask))
    assert torch.equal(clean[0], torch.zeros_like(clean[0]))


@gpu
@pytest.mark.parametrize("head_dim", cuda.HEAD_DIMS)
def test_repeats_bit_for_bit_under_poison(path, head_dim):
    inputs, options = problem("frames", torch.bfloat16, head_dim)
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        with jk.backend("cuda"):
            results = [jk.masked_attention(*inputs, **options) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert not results[0].isnan().any() and all(torch.equal(result, results[0]) for result in results)


@gpu
def test_graph_capture_and_replay(path):
    q, k, v = (torch.randn(1, 4, 300, 64, device="cuda").bfloat16().transpose(1, 2).flatten(0, 1) for _ in range(3))
    mask = jk.Ragged.from_lengths([100, 150, 50], device="cuda")

    def attend():
        with jk.backend("cuda"):
            return jk.masked_attention(q, k, v, mask=mask)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    mask.cu_seqlens.copy_(torch.tensor([0, 20, 170, 300], device="cuda"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, attend())


@gpu
@pytest.mark.parametrize(
    ("dtype", "head_dim", "reason"), [(torch.float32, 64, "bfloat16 or float16"), (torch.bfloat16, 24, "compiled for")]
)
def test_a_forced_call_that_it_lacks_raises(dtype, head_dim, reason):
    q = torch.zeros(1, 1, 4, head_dim, device="cuda", dtype=dtype)
    with jk.backend("cuda"), pytest.raises(jk.BackendError, match=reason):
        jk.masked_attention(q, q, q)
