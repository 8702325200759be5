"""Surprise: a predictor's error at what a clip shows next, for whole clips and live sources, and clips to be surprised by."""

from .clips import write_pairs, write_possible, write_video
from .pairs import model_scores, pairwise_accuracy, pixel_scores
from .plain import surprise_per_window
from .scenes import KINDS, Pair, clip_pair, possible_clip
from .score import Surprise, score_windows, surprise
from .stream import StreamEnd, SurpriseStream, WindowScore
from .windows import Windows

__all__ = [
    "KINDS",
    "Pair",
    "StreamEnd",
    "Surprise",
    "SurpriseStream",
    "WindowScore",
    "Windows",
    "clip_pair",
    "model_scores",
    "pairwise_accuracy",
    "pixel_scores",
    "possible_clip",
    "score_windows",
    "surprise",
    "surprise_per_window",
    "write_pairs",
    "write_possible",
    "write_video",
]
