"""Surprise of a live source, frame by frame, in memory that does not grow."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import VJEPA2
from .score import score_windows
from .windows import Windows, check_frames, embed_tubelets


@dataclass(frozen=True)
class WindowScore:
    """The scores (contexts,) of one window, on the CPU, and its first frame, counted from the beginning of the stream."""

    start: int
    scores: Tensor


@dataclass(frozen=True)
class StreamEnd:
    """What a stream has seen: its frames, the windows scored, and the frames at its end that no scored window has."""

    frames: int
    windows: int
    unscored: int


class SurpriseStream:
    """Scores a source while it plays: every frame is embedded once, and a window is scored when its last frame comes.

    Formula: that of `surprise`, whose scores these equal (a batch of one rounds differently, in the last bits of float32).

    Memory: the patch embeddings of one window by both encoders, and the frames of an unfinished tubelet; nothing else is kept,
    however long the stream.

    Raises:
        ValueError: windows that the model cannot score; from `push`, a frame of another size or type, or after `close`.

    Cost: a frame costs its patch embedding; every `stride` frames one window is scored.

    Example:
        >>> from jepa_kernels.models import build_vjepa2
        >>> model = build_vjepa2("vit_tiny", img_size=32, pred_depth=1, encoder={"depth": 1}, seed=0)
        >>> stream = SurpriseStream(model)
        >>> scores = [stream.push(torch.zeros(32, 32, 3, dtype=torch.uint8)) for _ in range(19)]
        >>> [score.start for score in scores if score is not None], stream.close()
        ([0, 2], StreamEnd(frames=19, windows=2, unscored=1))
    """

    def __init__(self, model: VJEPA2, windows: Windows | None = None) -> None:
        self.model, self.windows = model, windows or Windows()
        self.windows.check(model)
        self._tubelet = model.encoder.tubelet_size
        self._waiting: list[Tensor] = []
        self._ring: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.windows.length // self._tubelet)
        self._frames = self._scored = self._end = 0
        self._closed = False

    @torch.no_grad()
    def push(self, frame: Tensor) -> WindowScore | None:
        """Takes the next frame, (H, W, C) uint8; returns the window that it completes, if any."""
        if self._closed:
            raise ValueError("the stream has been closed; make another SurpriseStream for another source")
        if frame.ndim != 3:
            raise ValueError(f"a frame must be (H, W, C); got shape {tuple(frame.shape)}")
        check_frames(self.model, tuple(frame.shape), frame.dtype)
        self._frames += 1
        # A copy: a camera may write its next picture into the same memory.
        self._waiting.append(frame.clone())
        if len(self._waiting) < self._tubelet:
            return None
        self._ring.append(embed_tubelets(self.model, torch.stack(self._waiting)))
        self._waiting.clear()
        start = self._frames - self.windows.length
        if start < 0 or start % self.windows.stride:
            return None
        own, target = (torch.cat(parts, dim=1) for parts in zip(*self._ring, strict=True))
        scores = score_windows(self.model, own, target, self.windows)[0].cpu()
        self._scored, self._end = self._scored + 1, self._frames
        return WindowScore(start, scores)

    def close(self) -> StreamEnd:
        """Ends the stream, wherever it stopped: a window that is not whole has no score, its frames are counted."""
        self._closed = True
        self._waiting.clear()
        self._ring.clear()
        return StreamEnd(self._frames, self._scored, self._frames - self._end)
