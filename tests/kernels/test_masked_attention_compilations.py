"""What Triton would compile for attention: the keys of its own cache, over a thousand masks and a whole training step."""

from __future__ import annotations

import collections

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import compute_cache_key, create_function_from_signature

import jepa_kernels as jk
from jepa_kernels import backends
from jepa_kernels.kernels.launch import Launch
from jepa_kernels.masks import MultiBlockMask3D
from jepa_kernels.models import build_vjepa2

OUTPUTS = ("out_ptr", "lse_ptr", "delta_ptr", "dq_ptr", "dk_ptr", "dv_ptr")
SHAPES = 1000
HEAD_DIM, HEADS = 64, 2


class Recorder:
    """Stands in for `Launch.run`: keeps the keys under which Triton would look for compiled kernels, and the calls."""

    def __init__(self):
        self.keys = set()
        self.calls = []
        self._backend = make_backend(GPUTarget("cuda", 90, 32))
        self._binders = {}
        self._key_caches = collections.defaultdict(dict)

    def __call__(self, launch):
        kernel = launch.kernel
        if kernel not in self._binders:
            self._binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, self._backend)
        call = {**launch.arguments, **launch.options, "enable_fp_fusion": True}
        _, specialization, options = self._binders[kernel](**call)
        self.keys.add((kernel.__name__, compute_cache_key(self._key_caches[kernel], specialization, options)))
        described = {
            name: (value.shape, value.stride(), value.dtype) if isinstance(value, torch.Tensor) else value
            for name, value in launch.arguments.items()
        }
        self.calls.append((kernel.__name__, launch.grid, described))
        for name in OUTPUTS:
            if isinstance(launch.arguments.get(name), torch.Tensor):
                launch.arguments[name].zero_()

    def kernels(self):
        return sorted(name for name, _ in self.keys)


@pytest.fixture
def recorder(monkeypatch):
    """The Triton backend of attention, chosen on CPU tensors, and recorded in place of launching."""
    found = Recorder()
    monkeypatch.setattr(Launch, "run", lambda launch: found(launch))
    monkeypatch.setattr(backends, "why_no_triton", lambda device, dtypes: None)
    monkeypatch.setenv("JEPA_KERNELS_BACKEND_MASKED_ATTENTION", "triton")
    return found


def attend(tokens, mask=None, keys=None, ragged=False, batch=2):
    """Forward and backward of packed projections, as the encoders call it; with `keys`, of queries against a cache."""
    lead = (tokens,) if ragged else (batch, tokens)
    if keys is None:
        qkv = torch.zeros(*lead, 3, HEADS, HEAD_DIM, dtype=torch.bfloat16, requires_grad=True)
        out = jk.masked_attention(qkv, mask=mask, rope=jk.Rope3D(torch.zeros(tokens, 3)))
    else:
        q = torch.zeros(batch, tokens, HEADS, HEAD_DIM, dtype=torch.bfloat16, requires_grad=True).transpose(1, 2)
        kv = torch.zeros(batch, keys, 2, HEADS, HEAD_DIM, dtype=torch.bfloat16, requires_grad=True).permute(2, 0, 3, 1, 4)
        out = jk.masked_attention(q, *kv, mask=mask, rope=jk.Rope3D(torch.zeros(keys, 3), torch.zeros(tokens, 3)))
    out.sum().backward()


def draw(low, high):
    return int(torch.randint(low, high, ()))


def attend_frames():
    frame = draw(1, 200)
    attend(frame * draw(65 // frame + 1, 600 // frame + 2), jk.FrameCausal(frame))


def attend_cache():
    frame, frames = draw(65, 130), draw(1, 6)
    attend(frame, jk.FrameCausal(frame, query_frame_offset=frames - 1), keys=frame * frames)


def attend_padded():
    tokens = draw(65, 600)
    attend(tokens, jk.KeyPadding(torch.randint(0, tokens + 1, (2,))))


def attend_ragged():
    lengths = torch.randint(0, 200, (draw(1, 9),)).tolist()
    attend(sum(lengths) + 1, jk.Ragged(jk.Ragged.from_lengths([*lengths, 1]).cu_seqlens, draw(200, 600)), ragged=True)


SHAPES_OF = {
    "dense": lambda: attend(draw(65, 600)),
    "frame_causal": attend_frames,
    "cache": attend_cache,
    "key_padding": attend_padded,
    "ragged": attend_ragged,
}


@pytest.mark.parametrize("kind", SHAPES_OF)
def test_a_thousand_mask_shapes_compile_nothing_new(recorder, kind):
    """Sizes of more than 64 tokens (up to there the forward has tiles of its own), so every operand's strides change."""
    torch.manual_seed(0)
    SHAPES_OF[kind]()
    first = recorder.keys.copy()
    assert recorder.kernels() == ["forward_kernel", "key_gradient_kernel", "query_gradient_kernel", "rotate_kernel"]
    for _ in range(SHAPES // len(SHAPES_OF)):
        SHAPES_OF[kind]()
    assert recorder.keys == first
    assert len({str(call) for call in recorder.calls}) > 100  # the calls did differ


def test_boolean_masks_of_any_shape_compile_at_most_four_variants(recorder):
    """The mask's row stride, in the largest power of two that divides it, decides how wide its loads may be: 1, 2, 4 or 8."""
    torch.manual_seed(0)
    for _ in range(100):
        tokens = draw(65, 200)
        attend(tokens, torch.ones(tokens, tokens, dtype=torch.bool))
    counts = collections.Counter(name for name, _ in recorder.keys)
    assert counts == {"forward_kernel": 4, "query_gradient_kernel": 4, "key_gradient_kernel": 4, "rotate_kernel": 1}


@pytest.mark.parametrize("kind", ["ragged", "key_padding", "bool"])
def test_a_graph_replays_for_every_mask_of_one_size(recorder, kind):
    """Grids and all values that a launch carries are the same: a mask changes only what its tensor holds."""
    torch.manual_seed(0)
    first = None
    for _ in range(SHAPES // 3 + 1):
        recorder.calls.clear()
        if kind == "ragged":
            lengths = torch.bincount(torch.multinomial(torch.rand(16) + 0.01, 700, replacement=True), minlength=16)
            attend(700, jk.Ragged(jk.Ragged.from_lengths(lengths.tolist()).cu_seqlens, 700), ragged=True)
        elif kind == "key_padding":
            attend(300, jk.KeyPadding(torch.randint(0, 301, (2,))))
        else:
            attend(70, torch.rand(2, 1, 70, 70) > 0.5)
        first = first or list(recorder.calls)
        assert recorder.calls == first
    assert len(first) == 6  # rotation and forward; rotations and both gradients


def test_a_v_jepa_2_training_step_needs_nine_compilations(recorder):
    """Head dims 64 (encoders) and 32 (predictor): dense targets, ragged contexts and predictions, of any masks."""
    model = build_vjepa2(
        "vit_tiny", img_size=96, num_frames=16, seed=0, encoder={"depth": 1}, pred_depth=1, pred_embed_dim=96, pred_num_heads=3
    )  # fmt: skip
    masks = MultiBlockMask3D.from_clip(16, 96, generator=torch.Generator().manual_seed(0))
    clips = torch.zeros(2, 16, 96, 96, 3, dtype=torch.uint8)
    counts = []
    for _ in range(6):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model(clips, *masks(2))
        loss.backward()
        counts.append(len(recorder.keys))
    assert counts == [9] * 6, recorder.kernels()
