"""Target update and optimiser: `EMATarget`, `AdamWEMA`, momentum schedules, checkpoints that survive an interrupted
write."""

from .adamw_ema import AdamWEMA
from .checkpoint import save_checkpoint
from .ema_target import EMATarget
from .pairing import parameter_groups, shadow_module, shadows_of
from .schedules import ConstantMomentum, LinearMomentum

__all__ = [
    "AdamWEMA",
    "ConstantMomentum",
    "EMATarget",
    "LinearMomentum",
    "parameter_groups",
    "save_checkpoint",
    "shadow_module",
    "shadows_of",
]
