"""The thin reference models: I-JEPA, V-JEPA and V-JEPA 2 as compositions of this package's operators."""

from .ac_predictor import VisionTransformerPredictorAC
from .ac_training import ACLosses, ac_losses, normalize_tokens
from .configs import ENCODER_SIZES, EncoderSize, encoder_size
from .ijepa import IJEPA, IJEPAPredictor, build_ijepa, images_channels_first
from .predictor import VisionTransformerPredictor
from .training import load_official_checkpoint, make_adamw_ema, make_optimizer, train_step
from .vision_transformer import VisionTransformer, build_encoder
from .vjepa import VJEPA, build_vjepa
from .vjepa2 import VJEPA2, build_vjepa2, channels_first
from .wrappers import MultiSeqWrapper, PredictorMultiSeqWrapper

__all__ = [
    "ENCODER_SIZES",
    "IJEPA",
    "VJEPA",
    "VJEPA2",
    "ACLosses",
    "EncoderSize",
    "IJEPAPredictor",
    "MultiSeqWrapper",
    "PredictorMultiSeqWrapper",
    "VisionTransformer",
    "VisionTransformerPredictor",
    "VisionTransformerPredictorAC",
    "ac_losses",
    "build_encoder",
    "build_ijepa",
    "build_vjepa",
    "build_vjepa2",
    "channels_first",
    "encoder_size",
    "images_channels_first",
    "load_official_checkpoint",
    "make_adamw_ema",
    "make_optimizer",
    "normalize_tokens",
    "train_step",
]
