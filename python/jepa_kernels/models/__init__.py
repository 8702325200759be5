"""The thin reference models: V-JEPA 2 as a composition of this package's operators."""

from .ac_predictor import VisionTransformerPredictorAC
from .ac_training import ACLosses, ac_losses, normalize_tokens
from .configs import ENCODER_SIZES, EncoderSize, encoder_size
from .predictor import VisionTransformerPredictor
from .training import load_official_checkpoint, make_optimizer, train_step
from .vision_transformer import VisionTransformer, build_encoder
from .vjepa2 import VJEPA2, build_vjepa2, channels_first
from .wrappers import MultiSeqWrapper, PredictorMultiSeqWrapper

__all__ = [
    "ENCODER_SIZES",
    "VJEPA2",
    "ACLosses",
    "EncoderSize",
    "MultiSeqWrapper",
    "PredictorMultiSeqWrapper",
    "VisionTransformer",
    "VisionTransformerPredictor",
    "VisionTransformerPredictorAC",
    "ac_losses",
    "build_encoder",
    "build_vjepa2",
    "channels_first",
    "encoder_size",
    "load_official_checkpoint",
    "make_optimizer",
    "normalize_tokens",
    "train_step",
]
