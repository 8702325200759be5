"""What shared windows save, and how often a model's surprise tells the impossible clip of a pair.

    python benchmarks/surprise.py speed [--rounds N] [--json FILE] [CASE ...]
    python benchmarks/surprise.py accuracy CHECKPOINT [--pairs N] [--json FILE]

Speed, all on the operators of this package, in interleaved rounds: `shared` is `surprise`; `single` calls the model for every
window and context (`surprise_per_window`); `batched` takes all windows in one call, but each context for itself, its targets and
embeddings computed anew, as published. Accuracy: one way to sum a clip up is chosen on pairs of other seeds (over all kinds),
then told for held-out pairs, with Wilson's 95 % interval; training clips are of other seeds and all possible.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_kernels.models import VJEPA2, build_vjepa2
from jepa_kernels.models.objective import normalised
from jepa_kernels.surprise import (
    KINDS,
    Windows,
    clip_pair,
    model_scores,
    pairwise_accuracy,
    pixel_scores,
    possible_clip,
    surprise,
    surprise_per_window,
)
from jepa_kernels.surprise.command import load_trained

CHOOSING, HELD_OUT = 500_000, 600_000  # first seeds


@dataclass(frozen=True)
class Case:
    """Widths and depths of the encoder and the predictor, pixels of a frame and of a patch, and frames of the clip."""

    width: int
    depth: int
    heads: int
    pred_width: int
    pred_depth: int
    size: int
    patch: int
    frames: int = 32


CASES = {
    "tutorial": Case(96, 3, 3, 96, 2, size=32, patch=8),
    "vit-tiny": Case(192, 12, 3, 96, 2, size=64, patch=16),
    "vit-small": Case(384, 12, 6, 192, 2, size=64, patch=16),
}


def build(case: Case) -> VJEPA2:
    return build_vjepa2(
        "vit_tiny", img_size=case.size, patch_size=case.patch, pred_depth=case.pred_depth, pred_embed_dim=case.pred_width,
        pred_num_heads=case.pred_width // 32, seed=0,
        encoder={"embed_dim": case.width, "depth": case.depth, "num_heads": case.heads},
    ).eval()  # fmt: skip


@torch.no_grad()
def batched(model: VJEPA2, frames: Tensor) -> Tensor:
    """The published order: a pass over all windows for every context, nothing kept between passes."""
    windows, tubelet = Windows(), model.encoder.tubelet_size
    clips = frames.unfold(0, windows.length, windows.stride).permute(0, 3, 4, 1, 2)  # (W, C, T, H, W)
    columns = []
    for context in windows.contexts:
        depth, rows, cols = model.encoder.grid(clips)
        ids, seen = torch.arange(depth * rows * cols).expand(len(clips), -1), context // tubelet * rows * cols
        known, hidden = ids[:, :seen], ids[:, seen:]
        predicted = model.predictor(model.encoder(clips, masks=known), known, hidden, mask_index=0)
        target = normalised(model.target_encoder(clips))[:, seen:]
        columns.append((predicted.float() - target).abs().mean(dim=(1, 2)))
    return torch.stack(columns, dim=1)


def interleaved(rounds: int, calls: dict[str, Callable[[], Tensor]]) -> dict[str, list[float]]:
    """Seconds of each call in every round, after one untimed round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return times


def speed(name: str, rounds: int) -> dict[str, Any]:
    case = CASES[name]
    model, frames = build(case), torch.from_numpy(possible_clip(0, case.frames, case.size))
    calls: dict[str, Callable[[], Tensor]] = {
        "shared": lambda: surprise(model, frames).scores,
        "single": partial(surprise_per_window, model, frames),
        "batched": partial(batched, model, frames),
    }
    scores = {other: call() for other, call in calls.items()}
    times = interleaved(rounds, calls)
    found: dict[str, Any] = {"case": name, "shared_ms": 1e3 * statistics.median(times["shared"])}
    for other in ("single", "batched"):
        ratios = [slow / fast for slow, fast in zip(times[other], times["shared"], strict=True)]
        found[other] = {
            "ms": 1e3 * statistics.median(times[other]),
            "speed_up": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "largest_difference": float((scores[other] - scores["shared"]).abs().max()),
        }
    return found


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` pairs."""
    z = 1.959964
    centre, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def accuracy(checkpoint: Path, count: int) -> dict[str, Any]:
    model, windows = load_trained(checkpoint)

    def of(first_seed: int) -> dict[str, dict[str, float]]:
        seeds = range(first_seed, first_seed + count)
        return {
            kind: pairwise_accuracy(
                (clip_pair(seed, kind, size=model.encoder.img_height) for seed in seeds),
                lambda clip: {**model_scores(model, clip, windows), **pixel_scores(clip)},
            )
            for kind in KINDS
        }

    def mean(scores: dict[str, dict[str, float]], name: str) -> float:
        return statistics.fmean(scores[kind][name] for kind in KINDS)

    choosing, held_out = of(CHOOSING), of(HELD_OUT)
    names = list(choosing[KINDS[0]])
    chosen = {
        "model": max((name for name in names if "pixels" not in name), key=partial(mean, choosing)),
        "pixels": max((name for name in names if "pixels" in name), key=partial(mean, choosing)),
    }
    told = {who: {**{kind: held_out[kind][name] for kind in KINDS}, "all": mean(held_out, name)} for who, name in chosen.items()}
    intervals = {
        who: {kind: interval(share, count * (len(KINDS) if kind == "all" else 1)) for kind, share in shares.items()}
        for who, shares in told.items()
    }
    return {
        "pairs_per_kind": count, "windows": asdict(windows), "chosen": chosen, "held_out": told, "intervals": intervals,
        "every_score": {"choosing": choosing, "held_out": held_out},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    speeding, telling = commands.add_parser("speed"), commands.add_parser("accuracy")
    speeding.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    speeding.add_argument("--rounds", type=int, default=5)
    telling.add_argument("checkpoint", type=Path)
    telling.add_argument("--pairs", type=int, default=50, help="of every kind, to choose on and to hold out each (default 50)")
    for command in (speeding, telling):
        command.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.command == "speed":
        results: Any = []
        for name in options.cases or list(CASES):
            results.append(found := speed(name, options.rounds))
            print(f"{name:10} shared {found['shared_ms']:8.1f} ms", end="")
            for other in ("single", "batched"):
                part = found[other]
                print(f"   {other} {part['ms']:8.1f} ms {part['speed_up']:.2f}x [{part['lowest']:.2f}, {part['highest']:.2f}]"
                      f" differs by {part['largest_difference']:.1e}", end="")  # fmt: skip
            print(flush=True)
    else:
        results = accuracy(options.checkpoint, options.pairs)
        for who, name in results["chosen"].items():
            bounds = results["intervals"][who]
            shares = "  ".join(
                f"{kind} {share:.1%} [{bounds[kind][0]:.1%}, {bounds[kind][1]:.1%}]"
                for kind, share in results["held_out"][who].items()
            )
            print(f"{who:7} ({name}): {shares}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
