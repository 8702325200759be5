"""The thin reference models: V-JEPA 2 as a composition of this package's operators."""

from jepa_kernels.models.configs import ENCODER_SIZES, EncoderSize, encoder_size
from jepa_kernels.models.predictor import VisionTransformerPredictor
from jepa_kernels.models.training import load_official_checkpoint, make_optimizer, train_step
from jepa_kernels.models.vision_transformer import VisionTransformer, build_encoder
from jepa_kernels.models.vjepa2 import VJEPA2, build_vjepa2, channels_first
from jepa_kernels.models.wrappers import MultiSeqWrapper, PredictorMultiSeqWrapper

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
    "make_optimizer",
    "train_step",
]
