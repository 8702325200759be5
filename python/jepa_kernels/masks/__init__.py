"""Which tokens the encoder sees and which the predictor must fill in: the mask samplers of I-JEPA, V-JEPA and V-JEPA 2."""

from .block2d import IJEPA_MASKS, MultiBlockMask2D, RectangleMasks
from .block3d import VJEPA2_MASKS, BlockMask, MultiBlockMask3D
from .gather import apply_masks
from .keep import KEEP_MODES, Masks

__all__ = [
    "IJEPA_MASKS",
    "KEEP_MODES",
    "VJEPA2_MASKS",
    "BlockMask",
    "Masks",
    "MultiBlockMask2D",
    "MultiBlockMask3D",
    "RectangleMasks",
    "apply_masks",
]
