"""Train a small V-JEPA 2 on the sample video, or on your own: `python examples/train_vjepa2.py --input FILE_OR_FOLDER`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import torch

from jepa_kernels.data import DataError, open_clips, sample_video
from jepa_kernels.masks import MultiBlockMask3D
from jepa_kernels.models import ENCODER_SIZES, build_vjepa2, make_adamw_ema, train_step


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", help="a video, an image, or a folder of them (default: the sample video)")
    parser.add_argument("--model", default="vit_tiny", choices=ENCODER_SIZES)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4, help="clips a step")
    parser.add_argument("--frames", type=int, default=8, help="frames a clip")
    parser.add_argument("--frame-step", type=int, default=2, help="take every n-th frame")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--predictor-depth", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5.25e-4)
    parser.add_argument("--momentum", type=float, default=0.99925)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="run the forward pass under bfloat16 autocast")
    parser.add_argument("--save", help="write the weights of the three networks to this file")
    return parser.parse_args()


def batches(args: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Batches of clips without end: (B, T, H, W, 3) uint8, decoded anew in every pass over the input."""
    waiting: list[torch.Tensor] = []
    while True:
        for clip in open_clips(args.input or sample_video(), args.frames, args.frame_step, args.size):
            waiting.append(clip)
            if len(waiting) == args.batch:
                yield torch.stack(waiting)
                waiting = []


def main() -> None:
    args = arguments()
    model = build_vjepa2(
        args.model,
        img_size=args.size,
        num_frames=args.frames,
        pred_depth=args.predictor_depth,
        seed=args.seed,
    ).to(args.device)
    optimizer = make_adamw_ema(model, lr=args.lr, shadow_dtype=torch.bfloat16 if args.bf16 else None)
    masks = MultiBlockMask3D.from_clip(args.frames, args.size, generator=torch.Generator().manual_seed(args.seed))
    start = time.perf_counter()
    for step, clips in zip(range(1, args.steps + 1), batches(args), strict=False):
        loss, stats = train_step(
            model,
            clips,
            *masks(args.batch),
            optimizer,
            args.momentum,
            autocast_dtype=torch.bfloat16 if args.bf16 else None,
        )
        if step == 1 or step % 10 == 0:
            seconds = time.perf_counter() - start
            print(
                f"step {step:4d}  loss {loss.item():.4f}  target std {stats['target_std'].item():.3f}  "
                f"context {stats['context_tokens']}  target {stats['target_tokens']} tokens  {seconds:.1f} s"
            )
    if args.save:
        parts = ("encoder", "predictor", "target_encoder")
        torch.save({part: getattr(model, part).state_dict() for part in parts}, args.save)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
