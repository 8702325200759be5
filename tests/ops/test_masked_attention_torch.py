"""masked_attention inside torch's machinery: gradcheck, opcheck, torch.compile, autocast, inference mode."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk
from jepa_kernels.ops import registry
from jepa_kernels.ops.masked_attention import Extras

OPERATOR = registry.get("masked_attention")
PLAIN = Extras(None, None, None, 0, 0, 0, None, None, None, None, 0.3)


@pytest.fixture(params=["reference", "cpu"])
def name(request):
    x = torch.zeros(1, 1, 1, 8)
    reason = OPERATOR.backends[request.param].supports(x, x, x, *PLAIN)
    if reason is not None:
        pytest.skip(reason)
    with jk.backend(request.param):
        yield request.param


def cases(batch: int, tokens: int, head_dim: int, dtype: torch.dtype = torch.float32) -> dict[str, Extras]:
    """One set of operator arguments for each mask, and one with tables."""
    tables = jk.Rope3D(torch.randint(0, 5, (tokens, 3)).float()).tables(head_dim, dtype)
    return {
        "plain": PLAIN,
        "bool": PLAIN._replace(bool_mask=(torch.rand(tokens, tokens) > 0.3).expand(batch, 2, tokens, tokens)),
        "lengths": PLAIN._replace(key_lengths=torch.tensor([2, 0][:batch], dtype=torch.int32)),
        "frames": PLAIN._replace(tokens_per_frame=2, query_frame_offset=1),
        "rope": PLAIN._replace(tokens_per_frame=2, **tables._asdict()),
    }


CASES = ["plain", "bool", "lengths", "frames", "rope"]


@pytest.mark.parametrize("case", CASES)
def test_opcheck(name, case):
    extras = cases(2, 6, 8)[case]
    q, k, v = (torch.randn(2, 2, 6, 8, requires_grad=True) for _ in range(3))
    qkv = torch.randn(2, 6, 3, 2, 8, requires_grad=True)
    torch.library.opcheck(torch.ops.jepa_kernels.masked_attention, (q, k, v, *extras))
    torch.library.opcheck(torch.ops.jepa_kernels.masked_attention_packed, (qkv, *extras))
    with torch.no_grad():
        out, lse = torch.ops.jepa_kernels.masked_attention(q, k, v, *extras)
        plain = [x.detach() for x in (torch.randn_like(out), q, k, v, out, lse)]
        torch.library.opcheck(torch.ops.jepa_kernels.masked_attention_backward, (*plain, *extras))
        packed = (plain[0], qkv.detach(), out, lse, *extras)
        torch.library.opcheck(torch.ops.jepa_kernels.masked_attention_packed_backward, packed)


def test_opcheck_ragged(name):
    extras = PLAIN._replace(cu_seqlens=torch.tensor([0, 4, 4, 6], dtype=torch.int32), max_seqlen=4)
    q, k, v = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    torch.library.opcheck(torch.ops.jepa_kernels.masked_attention, (q, k, v, *extras))


@pytest.mark.parametrize("case", CASES)
def test_gradcheck_of_operator(case):
    extras = cases(2, 6, 8, torch.float64)[case]
    q, k, v = (torch.randn(2, 2, 6, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    operators = torch.ops.jepa_kernels
    assert torch.autograd.gradcheck(lambda *x: operators.masked_attention(*x, *extras)[0], (q, k, v), fast_mode=True)
    qkv = torch.randn(2, 6, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: operators.masked_attention_packed(x, *extras)[0], (qkv,), fast_mode=True)


@pytest.mark.parametrize(
    "mask", [None, jk.FrameCausal(2), jk.KeyPadding(torch.tensor([0, 5]))], ids=["none", "frames", "keys"]
)
def test_gradcheck_of_twin(mask):
    rope = jk.Rope3D(torch.randint(0, 5, (6, 3)).float())
    q, k, v = (torch.randn(2, 2, 6, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def twin(*x):
        return jk.reference.masked_attention(*x, mask=mask, rope=rope)

    assert torch.autograd.gradcheck(twin, (q, k, v), fast_mode=True)
    assert torch.autograd.gradgradcheck(twin, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("shape", ["packed", "separate", "ragged", "ragged_packed"])
def test_twin_takes_every_layout(name, shape):
    rope = jk.Rope3D(torch.randint(0, 5, (6, 3)).float())
    mask = jk.Ragged.from_lengths([2, 4]) if "ragged" in shape else jk.KeyPadding(torch.tensor([3, 6]))
    sizes = {"packed": (2, 6, 3, 2, 8), "separate": (2, 2, 6, 8), "ragged": (6, 2, 8), "ragged_packed": (6, 3, 2, 8)}[
        shape
    ]
    inputs = [torch.randn(sizes, requires_grad=True) for _ in range(1 if "packed" in shape else 3)]
    ours, twin = (f(*inputs, mask=mask, rope=rope) for f in (jk.masked_attention, jk.reference.masked_attention))
    torch.testing.assert_close(ours, twin, atol=1e-5, rtol=1e-5)
    dout = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, dout), torch.autograd.grad(twin, inputs, dout), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def attention(qkv, mask, rope):
    return jk.masked_attention(qkv, mask=mask, rope=rope)


def attention_of_lengths(qkv, lengths, positions):
    return jk.masked_attention(qkv, mask=jk.KeyPadding(lengths), rope=jk.Rope3D(positions))


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=True)


def check_compiled(function, eager, qkv, *rest):
    ours, right = function(qkv, *rest), eager(qkv, *rest)
    torch.testing.assert_close(ours, right, atol=1e-6, rtol=1e-6)
    dout = torch.randn_like(right)
    grads = [torch.autograd.grad(x, qkv, dout)[0] for x in (ours, right)]
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-6)


def test_compile_without_recompiling_as_lengths_change(name):
    function = compiled(attention_of_lengths)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens, lengths in ((8, [8, 3]), (13, [0, 13]), (30, [7, 29])):
            qkv = torch.randn(2, tokens, 3, 2, 24, requires_grad=True)
            check_compiled(function, attention_of_lengths, qkv, torch.tensor(lengths), torch.rand(tokens, 3))


def test_compile_without_recompiling_as_frames_change(name):
    function = compiled(attention)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for per_frame, frames in ((4, 2), (5, 3), (7, 2)):
            tokens = per_frame * frames
            rope = jk.Rope3D.from_ids(torch.arange(tokens), grid=(1, per_frame))
            rope.tables(24)  # a filled cache must not matter
            qkv = torch.randn(2, tokens, 3, 2, 24, requires_grad=True)
            check_compiled(function, attention, qkv, jk.FrameCausal(per_frame), rope)


def test_compile_without_recompiling_as_sequences_change(name):
    function = compiled(attention)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([4, 2, 9], [5, 5, 5, 5], [30, 2]):
            total = sum(lengths)
            qkv = torch.randn(total, 3, 2, 24, requires_grad=True)
            check_compiled(function, attention, qkv, jk.Ragged.from_lengths(lengths), jk.Rope3D(torch.rand(total, 3)))


def test_compile_without_recompiling_as_bool_masks_change(name):
    function = compiled(attention)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (9, 12, 40):
            qkv = torch.randn(2, tokens, 3, 2, 24, requires_grad=True)
            check_compiled(function, attention, qkv, torch.rand(2, 1, tokens, tokens) > 0.5, None)


def test_compiled_graph_asks_for_the_backend_at_run_time(monkeypatch):
    functions = OPERATOR.backends["reference"].functions
    calls = []
    original = functions["forward"]
    monkeypatch.setitem(functions, "forward", lambda *arguments: calls.append("reference") or original(*arguments))
    function = compiled(attention)
    qkv = torch.randn(1, 4, 3, 2, 24)
    with jk.backend("reference"):
        function(qkv, None, None)
    assert calls == ["reference"]
    refused = pytest.raises(jk.BackendError, match="cuda kernels need CUDA tensors")
    with torch._dynamo.config.patch(error_on_recompile=True), jk.backend("cuda"), refused:
        function(qkv, None, None)


def test_autocast_casts_inputs_and_returns_float32_gradients(name):
    q, k, v = (torch.randn(2, 2, 9, 24, requires_grad=True) for _ in range(3))
    rope = jk.Rope3D(torch.rand(9, 3))
    with torch.autocast("cpu", torch.bfloat16):
        out = jk.masked_attention(q, k, v.bfloat16(), rope=rope)
        packed = jk.masked_attention(torch.stack([q, k, v]).permute(1, 3, 0, 2, 4), rope=rope)
    right = jk.masked_attention(*(x.bfloat16() for x in (q, k, v)), rope=rope)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, right) and torch.equal(packed, right)
    grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(jk.masked_attention(q, k, v, rope=rope).float().square().sum(), (q, k, v))
    assert all(g.dtype == torch.float32 for g in grads)
    assert all(torch.equal(a, b) for a, b in zip(grads, inside, strict=True))


def test_autocast_leaves_float64_alone():
    q = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        out = jk.masked_attention(q, q, q)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, q, q))


def test_second_derivatives_are_refused(name):
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(jk.masked_attention(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        gradient.sum().backward()


def test_gradient_of_some_inputs_only(name):
    q, k, v = (torch.randn(1, 2, 6, 8) for _ in range(3))
    k.requires_grad_()
    (some,) = torch.autograd.grad(jk.masked_attention(q, k, v).square().sum(), k)
    q.requires_grad_()
    v.requires_grad_()
    every = torch.autograd.grad(jk.masked_attention(q, k, v).square().sum(), (q, k, v))
    assert torch.equal(some, every[1])


@pytest.mark.gpu
def test_a_max_seqlen_that_is_too_small_changes_no_value_on_triton():
    """Lengths on a GPU are not looked at, so that nothing waits; programs cover every token whatever max_seqlen says."""
    qkv = torch.randn(80, 3, 2, 32, device="cuda", requires_grad=True)
    cu_seqlens = torch.tensor([0, 70, 80], dtype=torch.int32, device="cuda")
    results = []
    for longest in (70, 0):
        with jk.backend("triton"):
            out = jk.masked_attention(qkv, mask=jk.Ragged(cu_seqlens, longest))
            results.append((out, *torch.autograd.grad(out.square().sum(), qkv)))
    for right, result in zip(*results, strict=True):
        torch.testing.assert_close(result, right)


@pytest.mark.gpu
def test_runs_on_the_gpu_of_its_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    q = torch.randn(1, 2, 65, 32, device="cuda:1")
    with jk.backend("triton"), torch.cuda.device(0):
        torch.testing.assert_close(jk.masked_attention(q, q, q), jk.reference.masked_attention(q, q, q))
