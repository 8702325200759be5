"""What a run tells of itself: a JSON object a line, collapse diagnostics, and the progress on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ROWS = 1024  # of the feature matrix whose singular values are taken

FILE = "metrics.jsonl"


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of a matrix (rows, D): how many directions it fills.

    1 for rows on a line, min(rows, D) for directions of equal strength, 0 for a matrix of zeros.

    Source: Roy and Vetterli (2007).

    Example:
        >>> effective_rank(torch.eye(4)), effective_rank(torch.ones(4, 4)) < 1.01
        (4.0, True)
    """
    values = torch.linalg.svdvals(features.double())
    total = values.sum()
    if total <= 1e-12 * max(features.shape):
        return 0.0
    share = values / total
    return float(torch.exp(-(share * share.clamp(min=1e-300).log()).sum()))


@torch.no_grad()
def collapse(features: Tensor) -> dict[str, float]:
    """How far target features (B, N, D) are from being the same for every input.

    Each position's mean over the batch is taken off first, so that tokens which tell nothing but their position count as
    collapsed: `feature_std` is the root mean square of what remains, `effective_rank` that of up to 1024 of its rows. Both go to
    0 when the encoder ignores its input. A batch of one is centred over its tokens instead.

    Example:
        >>> collapse(torch.arange(6.0).view(1, 3, 2).expand(4, 3, 2))["feature_std"]
        0.0
    """
    features = features.float()
    centred = features - features.mean(dim=0 if len(features) > 1 else 1, keepdim=True)
    rows = centred.flatten(0, 1)
    places = torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows)), device=rows.device).long()
    return {
        "feature_std": float(rows.square().mean().sqrt()),
        "effective_rank": effective_rank(rows[places]),
    }


class Log:
    """The metrics file. Opened to go on after a step, it first drops what a killed run wrote beyond its checkpoint."""

    def __init__(self, path: Path, after_step: int) -> None:
        kept = []
        if after_step and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= after_step:
                        kept.append(line)
                except (ValueError, KeyError):  # half a line of a killed run
                    continue
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Terminal:
    """Progress for a person: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar, self._task = bar, task

    def step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)


@contextmanager
def terminal(steps: int, shown: bool) -> Iterator[Terminal | None]:
    """The progress display of a run; None in the processes that show nothing."""
    if not shown:
        yield None
        return
    if not sys.stdout.isatty():
        yield Terminal()
        return
    try:
        from rich import progress
    except ImportError:  # a bar is a convenience; the lines say the same
        yield Terminal()
        return
    columns = (progress.MofNCompleteColumn(), progress.BarColumn(), progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
    with progress.Progress(*columns) as bar:
        yield Terminal(bar, bar.add_task("", total=steps))


def line(record: dict[str, Any], steps: int) -> str:
    """A metrics record in one line for people.

    >>> line({"step": 3, "loss": 0.5, "lr": 1e-4, "effective_rank": 7.25}, 10)
    'step 3/10  loss 0.5000  lr 1.0e-04  effective rank 7.2'
    """
    text = [f"step {record['step']}/{steps}", f"loss {record['loss']:.4f}", f"lr {record['lr']:.1e}"]
    for key, name, digits in (("feature_std", "feature std", 3), ("effective_rank", "effective rank", 1)):
        if key in record:
            text.append(f"{name} {record[key]:.{digits}f}")
    if "samples_per_s" in record:
        text.append(f"{record['samples_per_s']:.1f} samples/s")
    if record.get("skipped_files"):
        text.append(f"{record['skipped_files']} files skipped")
    return "  ".join(text)
