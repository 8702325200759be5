"""Unfused twins of every public function in plain PyTorch: the definition of what is right, in any dtype up to float64."""

from .adamw_ema import adamw_ema_
from .ema_update import ema_update_
from .jepa_loss import jepa_loss
from .masked_attention import masked_attention
from .patch_embed import patch_embed
from .patch_embed_pair import patch_embed_pair
from .sigreg import sigreg
from .vicreg_loss import vicreg_loss

__all__ = [
    "adamw_ema_",
    "ema_update_",
    "jepa_loss",
    "masked_attention",
    "patch_embed",
    "patch_embed_pair",
    "sigreg",
    "vicreg_loss",
]
