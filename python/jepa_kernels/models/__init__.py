"""The thin reference models: V-JEPA 2 as a composition of this package's operators."""

from .configs import ENCODER_SIZES, EncoderSize, encoder_size
from .predictor import VisionTransformerPredictor
from .training import load_official_checkpoint, make_adamw_ema, make_optimizer, train_step
from .vision_transformer import VisionTransformer, build_encoder
from .vjepa2 import VJEPA2, build_vjepa2, channels_first
from .wrappers import MultiSeqWrapper, PredictorMultiSeqWrapper

__all__ = [
    "ENCODER_SIZES",
    "VJEPA2",
    "EncoderSize",
    "MultiSeqWrapper",
    "PredictorMultiSeqWrapper",
    "VisionTransformer",
    "VisionTransformerPredictor",
    "build_encoder",
    "build_vjepa2",
    "channels_first",
    "encoder_size",
    "load_official_checkpoint",
    "make_adamw_ema",
    "make_optimizer",
    "train_step",
]
