"""The thin reference models: I-JEPA, V-JEPA, V-JEPA 2 and 2.1, LeJEPA, DINO, VICReg and MAE, as compositions of this package's
operators."""

from .ac_predictor import VisionTransformerPredictorAC
from .ac_training import ACLosses, ac_losses, normalize_tokens
from .configs import ENCODER_SIZES, EncoderSize, encoder_size
from .dino import DINO, DINOHead, build_dino
from .ijepa import IJEPA, IJEPAPredictor, build_ijepa, images_channels_first
from .lejepa import LeJEPA, build_lejepa
from .mae import MAE, MAEDecoder, build_mae
from .objective import Objective
from .predictor import VisionTransformerPredictor
from .training import load_official_checkpoint, make_adamw_ema, make_optimizer, train_step
from .vicreg import VICReg, build_vicreg
from .views import encode_views
from .vision_transformer import VisionTransformer, build_encoder
from .vjepa import VJEPA, build_vjepa
from .vjepa2 import VJEPA2, build_vjepa2, channels_first
from .vjepa21 import VJEPA21, MultiLevelEncoder, MultiLevelPredictor, build_vjepa21
from .wrappers import MultiSeqWrapper, PredictorMultiSeqWrapper

__all__ = [
    "DINO",
    "ENCODER_SIZES",
    "IJEPA",
    "MAE",
    "VJEPA",
    "VJEPA2",
    "VJEPA21",
    "ACLosses",
    "DINOHead",
    "EncoderSize",
    "IJEPAPredictor",
    "LeJEPA",
    "MAEDecoder",
    "MultiLevelEncoder",
    "MultiLevelPredictor",
    "MultiSeqWrapper",
    "Objective",
    "PredictorMultiSeqWrapper",
    "VICReg",
    "VisionTransformer",
    "VisionTransformerPredictor",
    "VisionTransformerPredictorAC",
    "ac_losses",
    "build_dino",
    "build_encoder",
    "build_ijepa",
    "build_lejepa",
    "build_mae",
    "build_vicreg",
    "build_vjepa",
    "build_vjepa2",
    "build_vjepa21",
    "channels_first",
    "encode_views",
    "encoder_size",
    "images_channels_first",
    "load_official_checkpoint",
    "make_adamw_ema",
    "make_optimizer",
    "normalize_tokens",
    "train_step",
]
