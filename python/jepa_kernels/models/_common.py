"""What the encoder and the predictor share: initialisation, and running a stack of blocks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention_masks import Ragged
from ..patch_grid import patch_count
from ..rope import Rope3D


@contextlib.contextmanager
def seeded_weights(seed: int | None) -> Iterator[None]:
    """Weights drawn inside depend on the seed alone, and torch's global generator is left as it was; None changes nothing."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.random.default_generator.manual_seed(seed)
        yield


def init_weights(module: nn.Module, blocks: nn.ModuleList, std: float) -> None:
    """Truncated-normal weights, zero biases; then the two maps that write to the residual stream of layer l
    (counted from 1) are divided by sqrt(2 l), so that its variance does not grow with depth."""
    for child in module.modules():
        if isinstance(child, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.trunc_normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    with torch.no_grad():
        for layer, block in enumerate(blocks, start=1):
            for weight in (block.get_parameter("attn.proj.weight"), block.get_parameter("mlp.fc2.weight")):
                weight.div_(math.sqrt(2.0 * layer))


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, rope: Rope3D | None, recompute: bool, mask: Ragged | None = None
) -> Tensor:
    """Apply the blocks in turn, with one rope object for all of them; `recompute` trades time for activations. With a
    `Ragged` mask x is (total, D), sequences one after another."""
    recompute = recompute and torch.is_grad_enabled()
    for block in blocks:
        if recompute:
            x = checkpoint(block, x, use_reentrant=False, rope=rope, attn_mask=mask)
        else:
            x = block(x, rope=rope, attn_mask=mask)
    return x


def packed(parts: Sequence[Tensor]) -> Tensor:
    """Tensors (B, K, ...), which may differ in K, as the rows of one: (total, ...), sequence after sequence."""
    rows = [part.flatten(0, 1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def packed_lengths(shapes: Sequence[tuple[int, int]], device: torch.device) -> Ragged:
    """The lengths of sequences that `packed` joined, from each part's (B, K). Made on the device: nothing is copied to it."""
    starts, total = [], 0
    for batch, tokens in shapes:
        starts.append(torch.arange(batch, dtype=torch.int32, device=device) * tokens + total)
        total += batch * tokens
    end = torch.full((1,), total, dtype=torch.int32, device=device)
    return Ragged(torch.cat([*starts, end]), max(tokens for _, tokens in shapes))


def token_grid(num_frames: int, height: int, width: int, tubelet_size: int, patch_size: int) -> tuple[int, int, int]:
    """Tokens along frame, row and column; one frame is an image, without tubelets."""
    depth = patch_count("num_frames", num_frames, "tubelet_size", tubelet_size) if num_frames > 1 else 1
    rows = patch_count("height", height, "patch_size", patch_size)
    return depth, rows, patch_count("width", width, "patch_size", patch_size)


def frame_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels, from both or from one number for both."""
    return (img_size, img_size) if isinstance(img_size, int) else (int(img_size[0]), int(img_size[1]))
