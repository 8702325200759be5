"""masked_attention on every backend that runs here: definition, masks, layouts, gradients, accuracy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import jepa_kernels as jk
from conftest import backend_parameters, instruction_set, instruction_sets
from jepa_kernels import backends
from jepa_kernels.ops import registry
from jepa_kernels.ops.masked_attention import Extras

OPERATOR = registry.get("masked_attention")
NO_EXTRAS = Extras(None, None, None, 0, 0, 0, None, None, None, None, 1.0)


def require(place: tuple[str, str], dtype: torch.dtype) -> None:
    x = torch.zeros(1, 1, 1, 8, dtype=dtype, device=place[0])
    implementation = OPERATOR.backends.get(place[1])
    reason = implementation.supports(x, x, x, *NO_EXTRAS) if implementation else f"no {place[1]} kernel"
    if reason is not None:
        pytest.skip(reason)


# What cuda computes, in bfloat16 and float16 at some head dims, is tested in test_masked_attention_cuda.py.
@pytest.fixture(params=backend_parameters(without=("cuda",)))
def place(request):
    """(device, backend), the backend forced."""
    require(request.param, torch.float32)
    with jk.backend(request.param[1]):
        yield request.param


def rotated(x: Tensor, positions: Tensor, adjacent_share_angle: bool) -> Tensor:
    """V-JEPA 2's map of x (..., N, D) by positions (..., N, 3), written out axis by axis."""
    d = 2 * (x.shape[-1] // 3 // 2)
    pieces = []
    for axis in range(3):
        segment = x[..., axis * d : (axis + 1) * d]
        omega = 10000.0 ** (-torch.arange(d // 2, dtype=positions.dtype, device=x.device) / (d / 2))
        theta = positions[..., axis, None] * omega
        theta = theta.repeat_interleave(2, -1) if adjacent_share_angle else torch.cat([theta, theta], -1)
        even, odd = segment[..., 0::2], segment[..., 1::2]
        first = even * theta[..., 0::2].cos() - odd * theta[..., 0::2].sin()
        second = odd * theta[..., 1::2].cos() + even * theta[..., 1::2].sin()
        pieces.append(torch.stack([first, second], -1).flatten(-2))
    return torch.cat([*pieces, x[..., 3 * d :]], -1)


def defined(q, k, v, dense=None, positions=None, scale=None, adjacent_share_angle=False) -> Tensor:
    """Attention in float64; rows without a key give zeros."""
    q, k, v = q.double(), k.double(), v.double()
    if positions is not None:
        positions = positions.double()
        positions = positions[:, None] if positions.dim() == 3 else positions
        q, k = rotated(q, positions, adjacent_share_angle), rotated(k, positions, adjacent_share_angle)
    scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if dense is None:
        return scores.softmax(-1) @ v
    weights = torch.where(dense, (scores - scores.detach().amax(-1, keepdim=True)).exp(), torch.zeros_like(scores))
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-300) @ v


def leaves(*shapes, dtype=torch.float32, device="cpu", seed=0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]


def compare(actual: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float = 1e-5) -> None:
    """Values, and gradients of a random projection."""
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)
    dout = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7)).to(expected)
    grads = torch.autograd.grad(actual, inputs, dout.to(actual.dtype))
    for ours, right in zip(grads, torch.autograd.grad(expected, inputs, dout), strict=True):
        torch.testing.assert_close(ours.double(), right.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("batched", [False, True], ids=["shared", "batched"])
@pytest.mark.parametrize("head_dim", [24, 32, 64, 80, 88])
def test_vjepa2_rope_equals_definition(place, head_dim, batched):
    q, k, v = leaves(*[(2, 2, 37, head_dim)] * 3, device=place[0])
    ids = torch.stack([torch.randperm(128)[:37].sort().values for _ in range(2)]).to(q.device)
    rope = jk.Rope3D.from_ids(ids if batched else ids[0], grid=(4, 4))
    actual = jk.masked_attention(q, k, v, rope=rope)
    compare(actual, defined(q, k, v, positions=rope.positions), [q, k, v])
    true_rotation = defined(q, k, v, positions=rope.positions, adjacent_share_angle=True)
    with pytest.raises(AssertionError, match="not close"):
        compare(actual, true_rotation, [q, k, v])


def test_rotation_convention_equals_a_true_rotation(place):
    q, k, v = leaves(*[(1, 2, 20, 32)] * 3, device=place[0])
    rope = jk.Rope3D.from_ids(torch.arange(20, device=q.device), grid=(2, 2), convention="rotation")
    right = defined(q, k, v, positions=rope.positions, adjacent_share_angle=True)
    compare(jk.masked_attention(q, k, v, rope=rope), right, [q, k, v])


MASKS = {
    "bool": lambda B, H, Nq, Nk: torch.rand(B, H, Nq, Nk) > 0.4,
    "bool_shared": lambda B, H, Nq, Nk: torch.rand(Nq, Nk) > 0.4,
    "bool_by_key": lambda B, H, Nq, Nk: torch.rand(B, 1, 1, Nk) > 0.4,
    "bool_by_query": lambda B, H, Nq, Nk: torch.rand(B, 1, Nq, 1) > 0.4,
    "key_padding": lambda B, H, Nq, Nk: jk.KeyPadding(torch.tensor([0, Nk, Nk // 2, 1])[:B]),
    "frames_of_one": lambda B, H, Nq, Nk: jk.FrameCausal(1),
    "frames_of_seven": lambda B, H, Nq, Nk: jk.FrameCausal(7),
    "frames_offset": lambda B, H, Nq, Nk: jk.FrameCausal(7, query_frame_offset=(Nk - Nq) // 7),
    "one_frame": lambda B, H, Nq, Nk: jk.FrameCausal(Nk),
}
LENGTHS = {kind: [(70, 70), (1, 7), (129, 64)] for kind in MASKS} | {
    "frames_of_one": [(1, 1), (65, 65), (33, 70)],
    "frames_of_seven": [(7, 7), (70, 70), (14, 91), (133, 133), (91, 14)],
    "frames_offset": [(14, 91), (70, 133)],
    "one_frame": [(66, 66)],
}
CASES = [(kind, *lengths) for kind, pairs in LENGTHS.items() for lengths in pairs]


def dense_of(mask, Nq: int, Nk: int) -> Tensor:
    if isinstance(mask, jk.FrameCausal):
        return mask.to_dense(Nq, Nk)
    return mask.to_dense(Nk) if isinstance(mask, jk.KeyPadding) else mask


def on_device(mask, device):
    if isinstance(mask, jk.KeyPadding):
        return jk.KeyPadding(mask.lengths.to(device))
    return mask.to(device) if isinstance(mask, Tensor) else mask


@pytest.mark.parametrize(("kind", "Nq", "Nk"), CASES)
def test_masks_equal_dense(place, kind, Nq, Nk):
    mask = MASKS[kind](4, 2, Nq, Nk)
    device = place[0]
    q, k, v = leaves((4, 2, Nq, 24), (4, 2, Nk, 24), (4, 2, Nk, 24), device=device)
    right = defined(q, k, v, dense=dense_of(mask, Nq, Nk).to(device))
    compare(jk.masked_attention(q, k, v, mask=on_device(mask, device)), right, [q, k, v])


@pytest.mark.parametrize("lengths", [[5, 0, 64, 1, 33], [130], [0, 0, 3]], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["separate", "packed"])
def test_ragged_equals_block_diagonal(place, lengths, packed):
    total, device = sum(lengths), place[0]
    mask = jk.Ragged.from_lengths(lengths, device=device)
    rope = jk.Rope3D(torch.randint(0, 9, (total, 3)).float().to(device))
    (qkv,) = leaves((total, 3, 2, 32), device=device)
    q, k, v = qkv.unbind(1)
    actual = (
        jk.masked_attention(qkv, mask=mask, rope=rope)
        if packed
        else jk.masked_attention(q, k, v, mask=mask, rope=rope)
    )
    assert actual.shape == (total, 2, 32)
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
    right = defined(*heads_first, dense=mask.to_dense(total), positions=rope.positions)
    compare(actual, right[0].transpose(0, 1), [qkv])


def test_packed_equals_separate_bit_for_bit(place):
    (qkv,) = leaves((2, 42, 3, 2, 24), device=place[0])
    q, k, v = qkv.detach().permute(2, 0, 3, 1, 4).unbind(0)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    rope = jk.Rope3D.from_ids(torch.arange(42, device=q.device), grid=(2, 3))
    mask = jk.FrameCausal(6)
    packed, separate = (
        jk.masked_attention(qkv, mask=mask, rope=rope),
        jk.masked_attention(q, k, v, mask=mask, rope=rope),
    )
    assert torch.equal(packed, separate)
    dout = torch.randn_like(packed)
    (dqkv,) = torch.autograd.grad(packed, qkv, dout)
    assert dqkv.shape == qkv.shape and dqkv.is_contiguous()
    grads = torch.autograd.grad(separate, (q, k, v), dout)
    assert torch.equal(dqkv.permute(2, 0, 3, 1, 4), torch.stack(grads))


def test_cross_attention_with_query_positions(place):
    device = place[0]
    q, k, v = leaves((2, 2, 12, 32), (2, 2, 30, 32), (2, 2, 30, 32), device=device)
    positions = torch.randint(0, 6, (30, 3)).float().to(device)
    rope = jk.Rope3D(positions, query_positions=positions[18:])
    full_q = torch.cat([q.new_zeros(2, 2, 18, 32), q], dim=2)
    right = defined(full_q, k, v, positions=positions)[:, :, 18:]
    compare(jk.masked_attention(q, k, v, rope=rope, scale=None), right, [q, k, v])


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_scale(place, scale):
    q, k, v = leaves(*[(1, 2, 9, 24)] * 3, device=place[0])
    compare(jk.masked_attention(q, k, v, scale=scale), defined(q, k, v, scale=scale), [q, k, v])


def test_views_of_any_strides(place):
    device = place[0]
    wide = leaves((2, 21, 2, 48), (2, 21, 2, 48), (1, 21, 1, 48), device=device)
    q = wide[0].transpose(1, 2)[..., ::2]  # channels two apart
    k = wide[1][..., 24:].transpose(1, 2)  # an offset
    v = wide[2][..., :24].transpose(1, 2).expand(2, 2, 21, 24)  # stride 0
    compare(jk.masked_attention(q, k, v), defined(q, k, v), wide)
    expanded_dout = torch.autograd.grad(jk.masked_attention(q, k, v).sum(), wide)
    for ours, right in zip(expanded_dout, torch.autograd.grad(defined(q, k, v).sum(), wide), strict=True):
        torch.testing.assert_close(ours, right.float(), atol=1e-5, rtol=1e-5)


def test_heads_merge_without_a_copy(place):
    q, k, v = leaves(*[(2, 3, 9, 24)] * 3, device=place[0])
    out = jk.masked_attention(q, k, v)
    assert out.transpose(1, 2).reshape(2, 9, 72).data_ptr() == out.data_ptr()


@pytest.mark.parametrize(("Nq", "Nk", "batch"), [(0, 5, 2), (5, 0, 2), (0, 0, 2), (5, 5, 0)])
def test_empty_inputs(place, Nq, Nk, batch):
    q, k, v = leaves((batch, 2, Nq, 24), (batch, 2, Nk, 24), (batch, 2, Nk, 24), device=place[0])
    out = jk.masked_attention(q, k, v)
    assert torch.equal(out, torch.zeros(batch, 2, Nq, 24, device=q.device))
    for gradient, x in zip(torch.autograd.grad(out.sum(), (q, k, v)), (q, k, v), strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))


def test_fully_masked_rows_give_zeros(place):
    q, k, v = leaves(*[(2, 2, 70, 32)] * 3, device=place[0])
    mask = torch.ones(70, 70, dtype=torch.bool, device=q.device)
    mask[3], mask[64:] = False, False
    out = jk.masked_attention(q, k, v, mask=mask)
    dq, dk, dv = torch.autograd.grad(out.square().sum() + out.sum(), (q, k, v))
    for rows in (out, dq):
        assert torch.equal(rows[:, :, 3], torch.zeros_like(rows[:, :, 3]))
        assert torch.equal(rows[:, :, 64:], torch.zeros_like(rows[:, :, 64:]))
    nothing = jk.masked_attention(q, k, v, mask=torch.zeros_like(mask))
    for x in (nothing, *torch.autograd.grad(nothing.sum(), (q, k, v))):
        assert torch.equal(x, torch.zeros_like(x))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["key_padding", "bool"])
def test_unseen_keys_never_matter(place, kind, poison):
    device = place[0]
    clean = leaves(*[(2, 2, 70, 32)] * 3, device=device)
    lengths = torch.tensor([0, 41], device=device)
    mask = jk.KeyPadding(lengths) if kind == "key_padding" else jk.KeyPadding(lengths).to_dense(70)
    unseen = torch.arange(70, device=device)[None, None, :, None] >= lengths[:, None, None, None]
    q = clean[0]
    k, v = (x.detach().masked_fill(unseen, poison).requires_grad_() for x in clean[1:])
    out, right = jk.masked_attention(q, k, v, mask=mask), jk.masked_attention(*clean, mask=mask)
    torch.testing.assert_close(out, right, atol=1e-6, rtol=1e-6)
    dout = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, (q, k, v), dout), torch.autograd.grad(right, clean, dout), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rope", [False, True], ids=["plain", "rope"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [24, 64, 88])
def test_error_is_at_most_twice_pytorchs(place, dtype, head_dim, rope):
    device = place[0]
    require(place, dtype)
    inputs = leaves(*[(2, 3, 138, head_dim)] * 3, dtype=dtype, device=device)
    embedding = jk.Rope3D.from_ids(torch.arange(138, device=device), grid=(4, 4)) if rope else None
    positions = embedding.positions if rope else None
    q, k, v = inputs
    if rope:
        q, k = (rotated(x.float(), positions, False).to(dtype) for x in (q, k))
    peers = F.scaled_dot_product_attention(q, k, v)
    ours = jk.masked_attention(*inputs, rope=embedding)
    dout = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    results = [[x, *torch.autograd.grad(x, inputs, dout)] for x in (ours, peers)]
    # Leaves in low precision would round the exact gradients: they are taken from float64 leaves.
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = defined(*wide, positions=positions)
    references = [exact, *torch.autograd.grad(exact, wide, dout.double())]
    for label, mine, theirs, right in zip(("out", "dq", "dk", "dv"), *results, references, strict=True):
        error, allowed = (mine.double() - right).abs(), (theirs.double() - right).abs()
        assert error.max() <= 2 * allowed.max(), label
        assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt(), label


@given(data=st.data())
@pytest.mark.parametrize("place", backend_parameters(without=("cuda",)))
def test_any_shape(place, data):
    device = place[0]
    require(place, torch.float32)
    batch, heads = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    frame, frames, more = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2))
    head_dim = 2 * data.draw(st.integers(1, 66))
    kind = data.draw(st.sampled_from(["none", "bool", "key_padding", "frames"]))
    Nq, Nk = frame * frames, frame * (frames + more)
    q, k, v = leaves((batch, heads, Nq, head_dim), *[(batch, heads, Nk, head_dim)] * 2, device=device)
    mask = None
    if kind == "bool":
        mask = torch.rand(batch, 1, Nq, Nk) > 0.5
    elif kind == "key_padding":
        mask = jk.KeyPadding(torch.randint(0, Nk + 1, (batch,)))
    elif kind == "frames":
        mask = jk.FrameCausal(frame, query_frame_offset=more)
    right = defined(q, k, v, dense=None if mask is None else dense_of(mask, Nq, Nk).to(device))
    with jk.backend(place[1]):
        compare(jk.masked_attention(q, k, v, mask=on_device(mask, device)), right, [q, k, v], tolerance=2e-5)


@pytest.mark.parametrize("level", instruction_sets())
def test_every_instruction_set(level):
    q, k, v = leaves(*[(2, 2, 70, 88)] * 3)
    rope = jk.Rope3D.from_ids(torch.arange(70), grid=(1, 7))
    mask = jk.FrameCausal(7)
    right = defined(q, k, v, dense=mask.to_dense(70, 70), positions=rope.positions)
    with instruction_set(level), jk.backend("cpu"):
        compare(jk.masked_attention(q, k, v, mask=mask, rope=rope), right, [q, k, v])


def test_repeated_runs_and_thread_counts_agree_bit_for_bit(place):
    q, k, v = leaves(*[(2, 3, 133, 64)] * 3, device=place[0])
    rope = jk.Rope3D.from_ids(torch.arange(133, device=q.device), grid=(1, 7))
    dout = torch.randn_like(q)

    def run() -> list[Tensor]:
        out = jk.masked_attention(q, k, v, mask=jk.FrameCausal(7), rope=rope)
        return [out, *torch.autograd.grad(out, (q, k, v), dout)]

    runs = [run(), run()]
    if place[1] == "cpu":
        threads = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                runs.append(run())
        finally:
            torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def poisoned(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """A tensor (B, H, N, D) in memory order B, N, H, D full of NaN, and the whole storage with guard bands around it."""
    batch, heads, tokens, channels = shape
    guard = 256
    storage = torch.full((2 * guard + batch * heads * tokens * channels,), float("nan"), dtype=dtype, device=device)
    return storage[guard:-guard].view(batch, tokens, heads, channels).transpose(1, 2), storage


@pytest.mark.parametrize("extras", ["none", "bool", "lengths", "frames", "ragged"])
def test_every_element_is_written_and_nothing_else(place, extras):
    device, shape = place[0], (1 if extras == "ragged" else 2, 2, 66, 24)
    q, k, v, dout = (x.detach() for x in leaves(*[shape] * 4, device=device))
    given_extras = {
        "none": NO_EXTRAS,
        "bool": NO_EXTRAS._replace(bool_mask=(torch.rand(66, 66, device=device) > 0.9).expand(2, 2, 66, 66)),
        "lengths": NO_EXTRAS._replace(key_lengths=torch.tensor([0, 65], dtype=torch.int32, device=device)),
        "frames": NO_EXTRAS._replace(tokens_per_frame=11),
        "ragged": NO_EXTRAS._replace(
            cu_seqlens=torch.tensor([0, 1, 1, 66], dtype=torch.int32, device=device), max_seqlen=65
        ),
    }[extras]
    functions = OPERATOR.backends[place[1]].functions
    out, out_storage = poisoned(shape, torch.float32, device)
    lse = torch.full(shape[:3], float("nan"), device=device)
    functions["forward"](q, k, v, out, lse, given_extras)
    gradients = [poisoned(shape, torch.float32, device) for _ in range(3)]
    functions["backward"](dout, q, k, v, out, lse, *(gradient for gradient, _ in gradients), given_extras)
    assert not lse.isnan().any()
    for written, storage in ((out, out_storage), *gradients):
        assert not written.isnan().any()
        assert storage.isnan().sum() == storage.numel() - written.numel()


def test_lse_is_the_logarithm_of_the_sum(place):
    q, k, v = (x.detach() for x in leaves(*[(1, 2, 40, 32)] * 3, device=place[0]))
    arguments = dict(zip(("q", "k", "v"), (q, k, v), strict=True)) | NO_EXTRAS._asdict() | {"scale": 0.5}
    _, lse = torch.ops.jepa_kernels.masked_attention(**arguments)
    torch.testing.assert_close(lse, (0.5 * q @ k.transpose(-2, -1)).logsumexp(-1), atol=1e-5, rtol=1e-5)
    assert lse.dtype == torch.float32 and not lse.requires_grad


def test_backward_runs_on_the_backend_of_the_forward(place, monkeypatch):
    functions = OPERATOR.backends[place[1]].functions
    calls = []
    original = functions["backward"]
    monkeypatch.setitem(functions, "backward", lambda *arguments: calls.append(place[1]) or original(*arguments))
    q, k, v = leaves(*[(1, 1, 4, 8)] * 3, device=place[0])
    out = jk.masked_attention(q, k, v)
    with jk.backend(None):
        assert backends.forced_by_context() is None
        out.sum().backward()
    assert calls == [place[1]]
