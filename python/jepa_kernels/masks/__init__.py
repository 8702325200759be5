"""Which tokens the encoder sees and which the predictor must fill in: the mask samplers of I-JEPA, V-JEPA, V-JEPA 2 and MAE,
and masks of forecasting."""

from .block2d import IJEPA_MASKS, MultiBlockMask2D, RectangleMasks
from .block3d import VJEPA2_MASKS, BlockMask, MultiBlockMask3D
from .forecast import ForecastMask
from .gather import apply_masks
from .keep import KEEP_MODES, Masks
from .random_mask import RandomMask

__all__ = [
    "IJEPA_MASKS",
    "KEEP_MODES",
    "VJEPA2_MASKS",
    "BlockMask",
    "ForecastMask",
    "Masks",
    "MultiBlockMask2D",
    "MultiBlockMask3D",
    "RandomMask",
    "RectangleMasks",
    "apply_masks",
]
