"""The native CPU kernels of masked attention, through the binding: accuracy, masks, views, memory safety, determinism, errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from attention_oracle import NAMES, Problem, errors, exact, in_pytorch

from conftest import assert_guards_intact, guarded, instruction_set, instruction_sets
from jepa_kernels import _native

pytestmark = pytest.mark.skipif(_native.why_no_cpu() is not None, reason="no native CPU module")

LENGTHS = (1, 7, 63, 65, 70, 113, 138, 258, 516)
HEAD_DIMS = (24, 32, 64, 80, 88, 96, 104, 128, 10, 256)
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
MASKS = ("dense", "bool", "bool_shared", "padding", "frame_causal", "ragged")
LAYOUTS = ("heads_last", "contiguous", "packed")
POISON = float("nan")


@dataclasses.dataclass(frozen=True)
class Shape:
    mask: str
    rope: bool
    dtype: torch.dtype
    queries: int
    keys: int
    dim: int
    layout: str

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.mask}-{'rope' if self.rope else 'plain'}-{name}-{self.queries}x{self.keys}-d{self.dim}-{self.layout}"


def _shapes() -> list[Shape]:
    """Every mask with every dtype and with and without RoPE; lengths, head dims and layouts rotate at coprime periods."""
    shapes = []
    for mask in MASKS:
        for dtype in DTYPES:
            for rope in (False, True):
                i = len(shapes)
                queries, keys = LENGTHS[(4 * i + 3) % 9], LENGTHS[(2 * i + 5 + i // 9) % 9]
                if mask == "ragged" or LAYOUTS[i % 3] == "packed":
                    keys = queries
                if mask == "frame_causal":
                    queries, keys = 43 * (1 + i % 4), 43 * (1 + (i + i // 4) % 4)
                layout = LAYOUTS[i % 3] if queries == keys else LAYOUTS[i % 2]
                shapes.append(Shape(mask, rope, dtype, queries, keys, HEAD_DIMS[(3 * i) % 10], layout))
    return shapes


def tensors(shape: Shape, batch: int = 2, heads: int = 2) -> tuple[torch.Tensor, ...]:
    """q, k, v as views of the layout."""
    if shape.layout == "packed":
        qkv = torch.randn(batch, shape.queries, 3, heads, shape.dim).to(shape.dtype)
        return qkv.permute(2, 0, 3, 1, 4).unbind()
    made = []
    for length in (shape.queries, shape.keys, shape.keys):
        if shape.layout == "contiguous":
            made.append(torch.randn(batch, heads, length, shape.dim).to(shape.dtype))
        else:  # heads inside tokens, with a gap after each token
            made.append(torch.randn(batch, length, heads + 1, shape.dim).to(shape.dtype)[:, :, :heads].transpose(1, 2))
    return tuple(made)


def make(shape: Shape) -> Problem:
    batch = 1 if shape.mask == "ragged" else 2
    q, k, v = tensors(shape, batch)
    dout = torch.randn(batch, shape.queries, 2, shape.dim).to(shape.dtype).transpose(1, 2)
    problem = Problem(q, k, v, dout, scale=shape.dim**-0.5)
    if shape.rope:
        angles = [
            10 * torch.randn(1 if shape.mask == "bool" else batch, n, shape.dim) for n in (shape.queries, shape.keys)
        ]
        problem.tables = tuple(table for angle in angles for table in (angle.cos(), angle.sin()))
    if shape.mask == "bool":
        mask = torch.rand(batch, 2, shape.queries, shape.keys) < 0.5
        mask[..., : shape.keys // 3] = True
        mask[..., shape.keys // 2 : shape.keys // 2 + 24] = False
        mask[..., 0] = True  # no query without a key: see test_fully_masked_rows
        problem.bool_mask = mask
    elif shape.mask == "bool_shared":  # one row and one column pattern for all, by strides of zero
        mask = torch.rand(batch, 1, 1, shape.keys) < 0.7
        mask[..., 0] = True
        problem.bool_mask = mask.expand(batch, 2, shape.queries, shape.keys)
    elif shape.mask == "padding":
        problem.key_lengths = torch.tensor([shape.keys, max(1, shape.keys * 2 // 3)], dtype=torch.int32)
    elif shape.mask == "frame_causal":
        problem.tokens_per_frame, problem.query_frame_offset = 43, max(0, shape.keys - shape.queries) // 43
    elif shape.mask == "ragged":
        problem.cu_seqlens = torch.tensor(
            [0, shape.queries // 3, shape.queries // 3, shape.queries], dtype=torch.int32
        )
        problem.max_seqlen = shape.queries
    return problem


def extras(problem: Problem, threads: int) -> tuple:
    tables = problem.tables or (None,) * 4
    return (
        *(_native.view(x) for x in (problem.bool_mask, problem.key_lengths, problem.cu_seqlens)),
        *(problem.max_seqlen, problem.tokens_per_frame, problem.query_frame_offset),
        *(_native.view(x) for x in tables),
        *(problem.scale, threads),
    )


def solve(problem: Problem, threads: int = 2, packed: bool = False) -> dict[str, torch.Tensor]:
    """Runs both directions into poisoned outputs between guard bands; with `packed`, the gradients are views of one tensor."""
    batch, heads, queries, dim = problem.q.shape
    dtype = problem.q.dtype
    guards = []

    def poisoned(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        inner, whole = guarded(torch.full(size, POISON, dtype=dtype))
        guards.append(whole)
        return inner

    out = poisoned(batch, queries, heads, dim).transpose(1, 2)
    lse = poisoned(batch, heads, queries, dtype=torch.float32)
    inputs = [_native.view(x) for x in (problem.q, problem.k, problem.v)]
    _native.cpu().masked_attention_forward(*inputs, _native.view(out), _native.view(lse), *extras(problem, threads))
    if packed:
        gradients = poisoned(batch, queries, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind()
    else:
        gradients = tuple(poisoned(*x.shape) for x in (problem.q, problem.k, problem.v))
    _native.cpu().masked_attention_backward(
        *(_native.view(problem.dout), *inputs, _native.view(out), _native.view(lse)),
        *(*(_native.view(x) for x in gradients), *extras(problem, threads)),
    )
    for whole in guards:
        assert_guards_intact(whole)
    return {"out": out, "lse": lse, **dict(zip(NAMES[1:], gradients, strict=True))}


def assert_accurate(shape: Shape | None = None, problem: Problem | None = None) -> None:
    """At most twice the error of PyTorch's own attention in the same type, in the maximum and in the root mean square.

    The largest error of one draw says little of either side: four draws are pooled.
    """
    dtype = shape.dtype if problem is None else problem.q.dtype
    ours, theirs = ({name: [0.0, 0.0] for name in NAMES} for _ in range(2))
    for _ in range(4 if problem is None else 1):
        drawn = make(shape) if problem is None else problem
        result, expected, peer = (
            solve(drawn, packed=shape is not None and shape.layout == "packed"),
            exact(drawn),
            in_pytorch(drawn),
        )
        for pooled, answer in ((ours, result), (theirs, peer)):
            for name in NAMES:
                pooled[name] = list(map(max, pooled[name], errors(answer[name], expected[name])))
        torch.testing.assert_close(result["lse"].double(), expected["lse"], rtol=1e-5, atol=2e-5)
    for name in NAMES:
        # With one key the softmax is constant: dq and dk are zero, and what is left is the rounding of two equal dot products.
        vanishing = name in ("dq", "dk") and drawn.k.shape[2] == 1
        largest = math.prod(
            x.double().abs().max().item() for x in (drawn.dout, drawn.v, drawn.k if name == "dq" else drawn.q)
        )
        floor = 2 * torch.finfo(dtype).eps * math.sqrt(drawn.q.shape[3]) * drawn.scale * largest if vanishing else 0.0
        for kind, mine, other in zip(("maximum", "rms"), ours[name], theirs[name], strict=True):
            assert mine <= max(2 * other, floor), f"{name} {kind}: {mine:.3e}, PyTorch {other:.3e}"


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name in a:
        assert torch.equal(a[name].contiguous().view(torch.uint8), b[name].contiguous().view(torch.uint8)), name


@pytest.fixture(params=instruction_sets())
def level(request):
    with instruction_set(request.param):
        yield request.param


@pytest.mark.parametrize("shape", _shapes(), ids=str)
def test_accuracy(level, shape):
    assert_accurate(shape)


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_head_dims(dim, dtype):
    assert_accurate(Shape("dense", False, dtype, 138, 138, dim, "packed"))


@pytest.mark.parametrize("length", (*LENGTHS, 1806))
def test_lengths(length):
    assert_accurate(Shape("dense", True, torch.bfloat16, length, length, 64, "heads_last"))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_bitwise_equal_for_every_number_of_threads_and_repeat(mask, dtype):
    problem = make(Shape(mask, True, dtype, 258, 258, 64, "packed"))
    if mask == "frame_causal":
        problem.q, problem.k, problem.v, problem.dout = (
            x[:, :, :215] for x in (problem.q, problem.k, problem.v, problem.dout)
        )
        problem.tables = tuple(table[:, :215] for table in problem.tables)
    once = solve(problem, threads=1)
    for threads in (1, 2, 3):
        same(once, solve(problem, threads=threads))


def test_many_heads_share_scratch_without_changing_results(level):
    """Whole heads a thread against blocks of shared heads: the division of work differs, the bits do not."""
    q, k, v, dout = (torch.randn(3, 16, 70, 32) for _ in range(4))
    problem = Problem(q, k, v, dout, scale=0.3)
    same(solve(problem, threads=1), solve(problem, threads=5))
    assert_accurate(problem=problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fully_masked_rows_are_zero_with_zero_gradients(level, dtype):
    problem = make(Shape("bool", False, dtype, 70, 65, 24, "contiguous"))
    problem.bool_mask[:, :, 5:60] = False
    result, expected = solve(problem), exact(problem)
    assert torch.all(result["out"][:, :, 5:60] == 0)
    assert torch.all(result["dq"][:, :, 5:60] == 0)
    assert torch.all(result["lse"][:, :, 5:60] == -math.inf)
    tolerance = 8 * torch.finfo(dtype).eps
    for name in NAMES:
        torch.testing.assert_close(result[name].double(), expected[name], rtol=tolerance, atol=4 * tolerance)


def test_a_batch_entry_without_keys(level):
    problem = make(Shape("padding", True, torch.bfloat16, 33, 20, 32, "contiguous"))
    problem.key_lengths[1] = 0
    problem.k[1], problem.v[1], problem.dout[1] = POISON, POISON, POISON
    result = solve(problem)
    for name in NAMES:
        assert torch.all(result[name][1] == 0), name
    assert torch.all(result["lse"][1] == -math.inf)


@pytest.mark.parametrize("value", (math.nan, math.inf))
@pytest.mark.parametrize("mask", ("bool", "padding", "frame_causal"))
def test_masked_values_do_not_leak(level, mask, value):
    """A masked key may hold anything: outputs and gradients are those with a number in its place."""
    problem = make(Shape(mask, True, torch.bfloat16, 129, 129, 32, "contiguous"))
    clean = dataclasses.replace(problem, k=problem.k.clone(), v=problem.v.clone())
    if mask == "bool":
        problem.bool_mask[..., 100] = False
        hidden = (slice(None), slice(None), slice(100, 101))
    elif mask == "padding":
        hidden = (slice(1, 2), slice(None), slice(int(problem.key_lengths[1]), None))
    else:
        problem.query_frame_offset = clean.query_frame_offset = -1  # the last frame's keys are seen by no query
        hidden = (slice(None), slice(None), slice(86, None))
    for x in (problem.k, problem.v):
        x[hidden] = value
    result, expected = solve(problem), solve(clean)
    for name in NAMES:
        torch.testing.assert_close(result[name], expected[name], rtol=2e-2, atol=2e-2)
    assert torch.all(result["dk"][hidden] == 0) and torch.all(result["dv"][hidden] == 0)


def test_a_visible_nan_reaches_exactly_the_queries_that_see_it(level):
    problem = make(Shape("frame_causal", False, torch.float32, 129, 129, 24, "contiguous"))
    problem.v[:, :, 50] = math.nan
    missing = solve(problem)["out"].isnan().all(-1)
    assert not missing[:, :, :43].any() and missing[:, :, 43:].all()


@pytest.mark.parametrize("size", (1e3, 1e-6))
def test_scores_of_any_size(level, size):
    """Scores that climb along the keys raise the maximum in every chunk."""
    problem = make(Shape("dense", False, torch.float32, 65, 700, 32, "contiguous"))
    direction = torch.randn(32)
    climb = torch.linspace(-1, 1, 700)[:, None] * direction * size
    problem.k, problem.q = (problem.k * 0.1 + climb).contiguous(), direction.expand_as(problem.q).contiguous()
    result, expected = solve(problem), exact(problem)
    assert torch.isfinite(result["lse"]).all()
    torch.testing.assert_close(result["out"].double(), expected["out"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(result["lse"].double(), expected["lse"], rtol=1e-5, atol=1e-5)


def test_no_tokens():
    for queries, keys in ((0, 5), (5, 0), (0, 0)):
        problem = make(Shape("dense", False, torch.bfloat16, queries, keys, 32, "contiguous"))
        result = solve(problem)
        assert all(torch.all(result[name] == 0) for name in NAMES)


REFUSALS = {
    "head dim 7": lambda p: dataclasses.replace(p, q=p.q[..., :7], k=p.k[..., :7], v=p.v[..., :7]),
    "k: expected size 2 in dimension 1, got 1": lambda p: dataclasses.replace(p, k=p.k[:, :1]),
    "v: expected size 32 in dimension 3, got 16": lambda p: dataclasses.replace(p, v=p.v[..., :16]),
    "v: expected bfloat16, got float32": lambda p: dataclasses.replace(p, v=p.v.float()),
    "dtype float64": lambda p: dataclasses.replace(p, q=p.q.double()),
    "last stride is 2": lambda p: dataclasses.replace(p, k=p.k.repeat_interleave(2, -1)[..., ::2]),
    "scale is inf": lambda p: dataclasses.replace(p, scale=math.inf),
    "scale is nan": lambda p: dataclasses.replace(p, scale=math.nan),
    "tokens_per_frame 5 does not divide 86 queries": lambda p: dataclasses.replace(p, tokens_per_frame=5),
    "tokens_per_frame is -3": lambda p: dataclasses.replace(p, tokens_per_frame=-3),
    "ragged sequences need batch size 1, got 2": lambda p: dataclasses.replace(p, cu_seqlens=ints(0, 86)),
    r"key_lengths\[1\] is 87, outside 0..86": lambda p: dataclasses.replace(p, key_lengths=ints(0, 87)),
    r"key_lengths\[0\] is -1": lambda p: dataclasses.replace(p, key_lengths=ints(-1, 86)),
    "key_lengths: expected size 2": lambda p: dataclasses.replace(p, key_lengths=ints(1)),
    "at most one of bool_mask": lambda p: dataclasses.replace(p, key_lengths=ints(1, 1), tokens_per_frame=43),
    "bool_mask: expected size 86 in dimension 3": lambda p: dataclasses.replace(
        p, bool_mask=torch.ones(2, 2, 86, 4).bool()
    ),
    "RoPE needs all of": lambda p: dataclasses.replace(p, tables=(torch.ones(1, 86, 32), None, None, None)),
    "q_cos: expected size 2 in dimension 0, got 3": lambda p: dataclasses.replace(
        p, tables=(torch.ones(3, 86, 32),) * 4
    ),
}


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("message", REFUSALS)
def test_refuses(message):
    problem = make(Shape("dense", False, torch.bfloat16, 86, 86, 32, "contiguous"))
    with pytest.raises(ValueError, match=message):
        solve(REFUSALS[message](problem))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ((0, 50, 40, 86), "less than the entry before, 50"),
        ((0, 50, 80), "ends at 80, the tensors hold 86"),
        ((1, 86), r"cu_seqlens\[0\] is 1"),
        ((0, 86), "sequence 0 has 86 tokens, more than max_seqlen 60"),
        ((), "cu_seqlens is empty"),
    ],
)
def test_refuses_wrong_offsets(offsets, message):
    q, k, v, dout = (torch.randn(1, 2, 86, 32) for _ in range(4))
    with pytest.raises(ValueError, match=message):
        solve(Problem(q, k, v, dout, 1.0, cu_seqlens=ints(*offsets), max_seqlen=60))


def test_refuses_a_view_past_its_storage():
    q, k, v, dout = (torch.randn(1, 2, 8, 32) for _ in range(4))
    problem = Problem(q, k, v, dout, 1.0)
    address, code, sizes, strides, _ = _native.view(q)
    out, lse = torch.empty_like(q), torch.empty(1, 2, 8)
    short = (address, code, sizes, strides, 100)
    with pytest.raises(ValueError, match="storage holds 100"):
        _native.cpu().masked_attention_forward(
            short, *(_native.view(x) for x in (k, v, out, lse)), *extras(problem, threads=1)
        )
