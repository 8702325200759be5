"""Runs the Triton attention kernels in Triton's interpreter and compares with dense float64 attention; one line a case.

A process of its own, because TRITON_INTERPRET must be set before triton is imported. float32 and float16 only: the
interpreter computes bfloat16 wrongly without a word.
"""

import itertools
import sys

import torch

from jepa_kernels.kernels import masked_attention

GUARD, POISON = 7.0, float("nan")
F32, F16 = torch.float32, torch.float16
# (head dim, dtype, mask, tables, batch, heads, queries, keys, scale)
CASES = [
    (24, F32, "dense", "none", 2, 2, 35, 21, 0.2),
    (24, F16, "frame_causal", "shared", 2, 2, 70, 70, 0.2),
    (26, F16, "key_padding", "batched", 2, 1, 40, 70, 0.2),
    (32, F32, "bool", "batched", 2, 1, 33, 40, 0.2),
    (32, F16, "ragged", "shared", 1, 2, 70, 70, 0.2),
    (64, F16, "key_padding", "none", 2, 2, 66, 70, 0.125),
    (64, F32, "frame_causal", "shared", 1, 1, 36, 36, 0.125),
    (64, F16, "bool", "shared", 2, 2, 70, 50, 0.125),
    (80, F32, "key_padding", "shared", 2, 1, 18, 20, 0.1),
    (80, F16, "cache", "shared", 1, 2, 18, 90, 0.1),
    (80, F16, "dense", "batched", 2, 1, 70, 129, -0.1),
    (88, F16, "frame_causal", "none", 1, 2, 130, 130, 0.1),
    (88, F32, "ragged", "shared", 1, 1, 38, 38, 0.1),
    (96, F16, "bool", "none", 1, 2, 65, 33, 0.1),
    (104, F16, "ragged", "shared", 1, 1, 70, 70, 0.1),
    (104, F32, "cache", "none", 1, 1, 9, 27, 0.1),
    (128, F16, "before_first", "shared", 1, 1, 45, 36, 0.1),
    (256, F16, "dense", "shared", 1, 1, 33, 40, 0.0625),
]
# With these small ones, every two of head dim, dtype, mask and tables come together in some case.
PAIRS = [
    (24, F16, "bool", "shared"),
    (24, F16, "cache", "batched"),
    (24, F32, "key_padding", "shared"),
    (24, F32, "ragged", "shared"),
    (32, F16, "frame_causal", "shared"),
    (32, F16, "key_padding", "shared"),
    (32, F32, "cache", "batched"),
    (32, F32, "dense", "none"),
    (64, F16, "ragged", "shared"),
    (64, F32, "cache", "shared"),
    (64, F32, "dense", "batched"),
    (80, F16, "frame_causal", "none"),
    (80, F16, "ragged", "shared"),
    (80, F32, "bool", "shared"),
    (88, F16, "dense", "batched"),
    (88, F16, "key_padding", "shared"),
    (88, F32, "bool", "shared"),
    (88, F32, "cache", "shared"),
    (96, F16, "cache", "shared"),
    (96, F16, "dense", "shared"),
    (96, F16, "ragged", "shared"),
    (96, F32, "frame_causal", "batched"),
    (96, F32, "key_padding", "shared"),
    (104, F16, "key_padding", "shared"),
    (104, F32, "bool", "shared"),
    (104, F32, "dense", "batched"),
    (104, F32, "frame_causal", "shared"),
    (128, F16, "bool", "shared"),
    (128, F16, "cache", "shared"),
    (128, F16, "dense", "batched"),
    (128, F16, "frame_causal", "shared"),
    (128, F32, "key_padding", "shared"),
    (128, F32, "ragged", "none"),
]


def small(head_dim, dtype, kind, tables):
    """One tile of queries, or a few in float32, and keys that fill no tile."""
    batch = 2 if tables == "batched" or kind == "key_padding" else 1
    queries = 27 if kind in ("ragged", "frame_causal") else 18
    return (head_dim, dtype, kind, tables, batch, 1, queries, 27, head_dim**-0.5)


CASES += [small(*pair) for pair in PAIRS]


def guarded(batch, tokens, parts, heads, head_dim, dtype):
    """parts NaN-poisoned (B, H, N, D) views of one packed buffer, with guard channels behind each row."""
    buffer = torch.full((batch, tokens, parts, heads, head_dim + 8), GUARD, dtype=dtype)
    buffer[..., :head_dim] = POISON
    return buffer, buffer[..., :head_dim].permute(2, 0, 3, 1, 4)


def mask_of(kind, batch, heads, queries, keys):
    """Keyword arguments of the launchers, the same mask as a dense tensor, and which queries and keys hold NaN."""
    i, j = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
    dead_q, dead_k = torch.zeros(batch, queries, dtype=torch.bool), torch.zeros(batch, keys, dtype=torch.bool)
    if kind == "key_padding":
        lengths = torch.tensor([keys - 3, 0, keys][:batch], dtype=torch.int32)
        dead_k = j >= lengths[:, None]
        return {"key_lengths": lengths}, (j < lengths[:, None])[:, None, None], dead_q, dead_k
    if kind == "ragged":  # an empty sequence, and tokens after the last one
        bounds = torch.tensor([0, queries // 2, queries // 2, queries - 5], dtype=torch.int32)
        sequence = torch.bucketize(torch.arange(queries), bounds, right=True)
        inside = torch.arange(queries) < queries - 5
        extras = {"cu_seqlens": bounds, "max_seqlen": queries // 2 + 1}
        return extras, ((sequence[:, None] == sequence) & inside[:, None])[None, None], ~inside[None], ~inside[None]
    if kind == "bool":  # a row that sees nothing, keys that nobody sees, and a tile of keys beyond them
        mask = torch.rand(1, heads, queries, keys) < 0.4
        mask[:, :, 3] = False
        mask[..., keys - 18 :] = False
        dead_k = (j >= keys - 18).expand(batch, keys)
        return {"bool_mask": mask.expand(batch, -1, -1, -1)}, mask, dead_q, dead_k
    offset = {"dense": None, "frame_causal": 0, "cache": keys // 9 - queries // 9 - 1, "before_first": -1}[kind]
    if offset is None:
        return {}, torch.ones(1, 1, queries, keys, dtype=torch.bool), dead_q, dead_k
    mask = j // 9 <= offset + i // 9
    return (
        {"tokens_per_frame": 9, "query_frame_offset": offset},
        mask[None, None],
        dead_q,
        ~mask.any(0).expand(batch, keys),
    )


def random_tables(rows, tokens, head_dim):
    """cos and sin of an angle a channel (as in V-JEPA 2, partners have angles of their own), sin signed for even channels."""
    angles = 6 * torch.rand(rows, tokens, head_dim)
    return torch.stack([angles.cos(), angles.sin() * torch.tensor([-1.0, 1.0]).repeat(head_dim // 2)])


def rotate(x, tables):
    if tables is None:
        return x
    cos, sin = (table[:, None].to(torch.promote_types(x.dtype, F32)) for table in tables)
    partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + partner * sin).to(x.dtype)


def dense(q, k, v, mask, q_tables, k_tables, scale):
    """Dense attention in the dtype of q as a careful eager implementation does it: sums in float32, float64 for float64."""
    wide = torch.promote_types(q.dtype, F32)
    scores = rotate(q, q_tables).to(wide) @ rotate(k, k_tables).to(wide).transpose(-1, -2) * scale
    lse = scores.masked_fill(~mask, float("-inf")).logsumexp(-1)
    weights = scores.masked_fill(~mask, -1e30).softmax(-1) * mask
    return (weights.to(q.dtype).to(wide) @ v.to(wide)).to(q.dtype), lse


def dense_results(q, k, v, dout, dtype, *rest):
    q, k, v = (tensor.detach().to(dtype).requires_grad_() for tensor in (q, k, v))
    out, lse = dense(q, k, v, *rest)
    return [out, lse, *torch.autograd.grad(out, (q, k, v), dout.to(dtype))]


def run(index, head_dim, dtype, kind, tables, batch, heads, queries, keys, scale):
    torch.manual_seed(index)
    extras, mask, dead_q, dead_k = mask_of(kind, batch, heads, queries, keys)
    (q,) = torch.randn(batch, queries, 1, heads, head_dim).to(dtype).permute(2, 0, 3, 1, 4)
    k, v = torch.randn(batch, keys, 2, heads, head_dim).to(dtype).permute(2, 0, 3, 1, 4)  # views of one packed tensor
    dout = torch.randn(batch, queries, heads, head_dim).to(dtype).transpose(1, 2)
    if index == 0:
        dout = torch.ones((), dtype=dtype).expand(batch, heads, queries, head_dim)  # the gradient of a sum
    q_tables = k_tables = None
    if tables != "none":
        rows = batch if tables == "batched" else 1
        q_tables = random_tables(rows, queries, head_dim)
        k_tables = q_tables if kind == "ragged" else random_tables(rows, keys, head_dim)
        extras |= {"q_cos": q_tables[0], "q_sin": q_tables[1], "k_cos": k_tables[0], "k_sin": k_tables[1]}
    rest = (mask, q_tables, k_tables, scale)
    exact = dense_results(q, k, v, dout, torch.float64, *rest)
    eager = dense_results(q, k, v, dout, dtype, *rest)

    q = q.masked_fill(dead_q[:, None, :, None], POISON)
    k, v = (tensor.masked_fill(dead_k[:, None, :, None], POISON) for tensor in (k, v))
    runs = []
    for _ in range(2 if index in (1, 3) else 1):
        buffers, (out,) = guarded(batch, queries, 1, heads, head_dim, dtype)
        lse = torch.full((batch, heads, queries), POISON)
        masked_attention.forward(q, k, v, out, lse, scale=scale, **extras)
        dq_buffer, (dq,) = guarded(batch, queries, 1, heads, head_dim, dtype)
        dkv_buffer, (dk, dv) = guarded(batch, keys, 2, heads, head_dim, dtype)
        masked_attention.backward(dout, q, k, v, out, lse, dq, dk, dv, scale=scale, **extras)
        for buffer in (buffers, dq_buffer, dkv_buffer):
            assert bool((buffer[..., head_dim:] == GUARD).all()), "wrote past a row"
        runs.append([out, lse, dq, dk, dv])
    for first, second in itertools.pairwise(runs):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "two runs differ"

    unseen = ~mask.any(-1).expand(batch, heads, queries)
    assert bool((runs[0][0][unseen] == 0).all() and (runs[0][2][unseen] == 0).all()), "a row without keys is not zero"
    hidden = ~mask.any(-2).expand(batch, heads, keys)
    assert bool((runs[0][3][hidden] == 0).all() and (runs[0][4][hidden] == 0).all()), (
        "a key that nobody sees has a gradient"
    )
    assert_accurate(runs[0], exact, eager)


def assert_accurate(results, exact, eager):
    """The rule of accuracy for out, lse, dq, dk and dv: at most twice the error of eager attention in the same dtype."""
    for name, ours, truth, theirs in zip(("out", "lse", "dq", "dk", "dv"), results, exact, eager, strict=True):
        assert not ours.isnan().any(), f"{name} holds NaN"
        assert torch.equal(ours.isinf(), truth.isinf()), f"{name}: infinite in other places"
        finite = ~truth.isinf()
        error, allowed = (ours - truth)[finite].abs(), (theirs - truth)[finite].abs()
        # Half a unit in the last place of the largest value: what storing the exact result would cost.
        floor = float(truth[finite].abs().max()) * torch.finfo(ours.dtype).eps / 2
        assert float(error.max()) <= 2 * float(allowed.max()) + floor, f"{name}: {error.max()}, eager {allowed.max()}"
        rms, allowed_rms = float(error.square().mean().sqrt()), float(allowed.square().mean().sqrt())
        assert rms <= 2 * allowed_rms + floor / 4, f"{name}: root mean square {rms}, eager {allowed_rms}"


if __name__ == "__main__":
    assert masked_attention.triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    for number in [int(argument) for argument in sys.argv[1:]] or range(len(CASES)):
        try:
            run(number, *CASES[number])
            print(number, "ok", flush=True)
        except AssertionError as error:
            print(number, "failed:", error, flush=True)
