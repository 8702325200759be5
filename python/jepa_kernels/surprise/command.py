"""The commands `jepa-kernels surprise`, which scores videos, and `surprise-clips`, which writes such clips."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.errors import DataError, require
from ..data.video import iterate_clips
from ..models import VJEPA2
from ..train import state
from ..train.build import build_model
from ..train.config import from_record
from ..train.errors import TrainError
from .clips import write_pairs, write_possible
from .score import Surprise, surprise
from .windows import Windows

OK = 0


def add(commands: Any) -> None:
    """Adds both commands to the parser of `jepa-kernels`."""
    scoring = commands.add_parser(
        "surprise",
        help="how far what a video shows is from what a trained V-JEPA 2 predicted, window by window: JSON and a plot",
        epilog="Exit codes: 0 done, 2 usage or input, a video shorter than a window included.",
    )
    scoring.add_argument("video", type=Path, help="a video; its frames are resized and cut to the model's size")
    scoring.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="of `jepa-kernels train`, family vjepa2")
    scoring.add_argument("--output", type=Path, required=True, metavar="DIR", help="for surprise.json and surprise.png")
    scoring.add_argument("--contexts", metavar="FRAMES", help="seen frames (default: masks.forecasts of training, or 2,4,6,8,10)")
    scoring.add_argument("--window", type=int, metavar="FRAMES", help="default: the clips of such training, or 16")
    scoring.add_argument("--stride", type=int, default=2, metavar="FRAMES", help="between windows (default 2)")
    scoring.add_argument("--frame-step", type=int, default=1, metavar="N", help="take every N-th frame (default 1)")
    scoring.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    scoring.set_defaults(handler=_score)
    clips = commands.add_parser(
        "surprise-clips", help="write generated clips as videos: possible, or pairs with impossible ones"
    )
    clips.add_argument("output", type=Path, metavar="DIR")
    clips.add_argument("--count", type=int, required=True, metavar="N", help="clips, or pairs of every kind")
    clips.add_argument("--pairs", action="store_true", help="pairs: an object vanishes, teleports, changes shape or floats")
    clips.add_argument("--first-seed", type=int, default=0, metavar="N", help="default 0")
    clips.add_argument("--frames", type=int, default=32, metavar="N", help="default 32")
    clips.add_argument("--size", type=int, default=32, metavar="PIXELS", help="default 32")
    clips.set_defaults(handler=_write)


def load_model(path: Path, device: torch.device | str = "cpu") -> VJEPA2:
    """The V-JEPA 2 of a checkpoint of `jepa-kernels train`, in evaluation mode; raises as `load_trained`."""
    return load_trained(path, device)[0]


def load_trained(path: Path, device: torch.device | str = "cpu") -> tuple[VJEPA2, Windows]:
    """The model, and the windows whose forecasts it was trained on; the published ones if it was trained on other masks.

    Raises:
        TrainError: no checkpoint of that command, or one of another family.
    """
    found = state.read(path)
    if "config" not in found:
        raise TrainError(f"{path} tells no configuration; surprise takes checkpoints of `jepa-kernels train`")
    config = from_record(found["config"], str(path))
    if config.model.family != "vjepa2":
        raise TrainError(f"{path} is of the family {config.model.family}; surprise needs a predictor of clips, vjepa2")
    model = build_model(config)
    assert isinstance(model, VJEPA2)
    state.load_parts(model, found, str(path))
    return model.eval().to(device), _trained_windows(config.masks.forecasts, config.model.tubelet_size)


def _trained_windows(forecasts: Sequence[Sequence[int]], tubelet_size: int) -> Windows:
    """The longest forecasts, all contexts of them; the published windows where there are none."""
    if not forecasts:
        return Windows()
    length = max(map(sum, forecasts))
    seen = {context for context, target in forecasts if context + target == length}
    return Windows(tuple(sorted(seen)), length, tubelet_size)


def record(found: Surprise, video: str) -> dict[str, Any]:
    """What surprise.json holds."""
    contexts = found.windows.contexts
    return {
        "video": video,
        "window": found.windows.length,
        "stride": found.windows.stride,
        "contexts": list(contexts),
        "starts": found.starts,
        "scores": found.scores.tolist(),
        "filtered": found.filtered.tolist(),
        "mean": {**{str(c): found.of_clip("mean", c) for c in contexts}, "filtered": found.of_clip("mean")},
        "max": {**{str(c): found.of_clip("max", c) for c in contexts}, "filtered": found.of_clip("max")},
    }


def _score(options: argparse.Namespace) -> int:
    try:
        contexts = None if options.contexts is None else tuple(int(number) for number in options.contexts.split(","))
    except ValueError:
        raise TrainError(f"--contexts must be numbers of frames with commas between; got {options.contexts!r}") from None
    name = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TrainError(f"--device {name}: torch finds no GPU here; use --device cpu")
    if options.output.exists() and not options.output.is_dir():
        raise TrainError(f"--output {options.output} is a file; give a folder")
    model, trained = load_trained(options.checkpoint, name)
    try:
        length = trained.length if options.window is None else options.window
        windows = Windows(trained.contexts if contexts is None else contexts, length, options.stride)
        windows.check(model)
        found = surprise(model, _frames(options.video, options.frame_step, model), windows)
    except DataError:
        raise
    except ValueError as error:
        raise TrainError(str(error)) from error
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "surprise.json").write_text(json.dumps(record(found, str(options.video)), indent=1))
    plot(found, options.output / "surprise.png")
    print(f"{len(found.starts)} windows of {windows.length} frames; filtered: mean {found.of_clip():.4f}, "
          f"max {found.of_clip('max'):.4f} from frame {found.starts[int(found.filtered.argmax())]}")  # fmt: skip
    print(f"surprise.json and surprise.png written to {options.output}")
    return OK


def _frames(video: Path, step: int, model: VJEPA2) -> Tensor:
    if step < 1:
        raise ValueError(f"--frame-step must be at least 1; got {step}")
    return torch.cat(list(islice(iterate_clips(video, 1, size=model.encoder.img_height), 0, None, step)))


def _write(options: argparse.Namespace) -> int:
    write = write_pairs if options.pairs else write_possible
    try:
        paths = write(options.output, options.count, options.first_seed, options.frames, options.size)
    except DataError:
        raise
    except ValueError as error:
        raise TrainError(str(error)) from error
    print(f"{len(paths)} videos written to {options.output}")
    return OK


def plot(found: Surprise, path: Path) -> None:
    """Writes the scores over the windows' first frames as a picture.

    Raises:
        DataError: Matplotlib is missing.
    """
    require("matplotlib", "plotting surprise")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for place, context in enumerate(found.windows.contexts):
        axes.plot(found.starts, found.scores[:, place].tolist(), marker=".", label=f"{context} frames seen")
    axes.plot(found.starts, found.filtered.tolist(), color="black", linewidth=2, label="least")
    axes.set_xlabel(f"first frame of the window of {found.windows.length}")
    axes.set_ylabel("surprise")
    axes.legend()
    figure.savefig(path)
