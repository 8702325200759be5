"""DINO: a student matches, from every crop, what a teacher that follows it says of the large crops."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.ema_update import ema_update_
from ..nn import Linear
from ._common import seeded_weights
from .lejepa import build_image_encoder
from .objective import Objective, exact, normalised, refuse_masks
from .views import check_views, pooled_views
from .vision_transformer import VisionTransformer


class _Prototypes(nn.Module):
    """Products with the unit vectors along the rows of `weight_v`."""

    def __init__(self, features: int, prototypes: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.randn(prototypes, features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight_v, dim=1))


class DINOHead(nn.Module):
    """Three linear maps with GELU between, a unit vector, and its products with unit prototypes.

    Formula: logits = W mlp(x) / |mlp(x)|, the rows of W of length 1.

    Shapes: (N, in_features) -> (N, prototypes), at least float32.

    State dict: `mlp.{0,2,4}.*`, and `last_layer.weight_v`, the prototypes before they are brought to length 1 (the official code
    also keeps their lengths, `weight_g`, at 1).

    Source: Caron et al., DINO (2021).

    Example:
        >>> DINOHead(8, 32, 16, prototypes=64)(torch.zeros(2, 8)).shape
        torch.Size([2, 64])
    """

    def __init__(self, in_features: int, hidden_features: int = 2048, bottleneck: int = 256, prototypes: int = 65536) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            Linear(in_features, hidden_features), nn.GELU(), Linear(hidden_features, hidden_features), nn.GELU(),
            Linear(hidden_features, bottleneck),
        )  # fmt: skip
        for layer in self.mlp:
            if isinstance(layer, Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = _Prototypes(bottleneck, prototypes)

    def forward(self, x: Tensor) -> Tensor:
        return exact(self.last_layer(F.normalize(exact(self.mlp(x)), dim=-1)))


class _Network(nn.Module):
    """Encoder and head of the student or of the teacher."""

    def __init__(self, encoder: VisionTransformer, head: DINOHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Logits (V, B, prototypes)."""
        pooled = pooled_views(self.encoder, views)
        return self.head(pooled.flatten(0, 1)).view(*pooled.shape[:2], -1)


class Centring(nn.Module):
    """What is taken off the teacher's logits, a running mean of them, so that no prototype wins everywhere.

    State dict: `center` (1, 1, prototypes).
    """

    center: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, 1, prototypes))

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """center <- momentum * center + (1 - momentum) * mean of the logits (V, B, prototypes), over all processes."""
        mean = logits.mean(dim=(0, 1), keepdim=True)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.momentum)


class DINO(Objective):
    """Cross-entropy from the teacher's sharpened, centred word on each large crop to the student's on every other crop.

    Formula: with logits s_v of the student on view v, t_g of the teacher on global view g, and p_g = softmax((t_g - center) /
    teacher_temperature),

        loss = mean over n and over pairs (g, v), v != g, of  - sum_k p_g[n, k] log softmax(s_v[n] / student_temperature)[k].

    The centre moves, in training mode, after the loss: see `Centring`. The teacher takes no gradient and follows the student.

    Shapes: `model(views)` takes a list of views, (B, H, W, C) or (B, C, H, W) each, the `num_global` global ones first; local
    ones may be smaller, and all run in one packed call. It returns the scalar loss and a dict: `teacher_entropy`, in nats
    (log of the number of prototypes where the teacher says nothing, 0 where one prototype takes all), and
    `teacher_divergence`, the mean Kullback-Leibler divergence of p from its mean over images, 0 where the teacher says the
    same of every image.

    Dtypes: views are uint8, or floating-point and normalised. Softmax and loss are taken in float32 under any autocast.

    Raises:
        ValueError: fewer views than `num_global`, fewer than two, or masks.

    Deterministic: as its operators are.

    Source: Caron et al., DINO (2021). The published encoders read out a class token; this one the mean of the tokens.

    Example:
        >>> model = build_dino("vit_tiny", img_size=32, patch_size=8, hidden_dim=32, prototypes=64, encoder={"depth": 1}, seed=0)
        >>> views = [torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8) for size in (32, 32, 16)]
        >>> loss, stats = model(views)
        >>> loss.shape, sorted(stats)
        (torch.Size([]), ['teacher_divergence', 'teacher_entropy'])
    """

    PARTS = ("encoder", "head", "target_encoder", "target_head", "centring")
    TRAINED = ("encoder", "head")
    OVER_VIEWS = True

    def __init__(
        self,
        encoder: VisionTransformer,
        head: DINOHead,
        num_global: int = 2,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        centre_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if num_global < 1 or not (student_temperature > 0 and teacher_temperature > 0):
            raise ValueError(
                f"num_global must be at least 1 and temperatures greater than 0; got {num_global}, {student_temperature} and "
                f"{teacher_temperature}"
            )
        self.student = _Network(encoder, head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.centring = Centring(len(head.last_layer.weight_v), centre_momentum)
        self.num_global = num_global
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature

    @property
    def encoder(self) -> VisionTransformer:
        return self.student.encoder

    @property
    def head(self) -> DINOHead:
        return self.student.head

    @property
    def target_encoder(self) -> VisionTransformer:
        return self.teacher.encoder

    @property
    def target_head(self) -> DINOHead:
        return self.teacher.head

    def forward(
        self, views: Sequence[Tensor], masks_enc: Sequence[Any] = (), masks_pred: Sequence[Any] = ()
    ) -> tuple[Tensor, dict[str, Any]]:
        refuse_masks("DINO", masks_enc, masks_pred)
        check_views("DINO", views, max(2, self.num_global))
        with torch.no_grad():
            logits = self.teacher(views[: self.num_global])
        words = self.student(views)
        with torch.autocast(words.device.type, enabled=False):
            wanted = ((logits - self.centring.center) / self.teacher_temperature).softmax(dim=-1)
            said = (words / self.student_temperature).log_softmax(dim=-1)
            # Every pair but a view with itself; -sum p log q for all pairs is one product.
            pairs = -torch.einsum("gnk,vnk->gv", wanted, said) / wanted.shape[1]
            loss = (pairs.sum() - pairs.diagonal().sum()) / (pairs.numel() - min(pairs.shape))
        if self.training:
            self.centring.update(logits)
        entropy = -(wanted * wanted.clamp(min=1e-30).log()).sum(dim=-1).mean()
        mean = wanted.mean(dim=(0, 1))
        divergence = -(mean * mean.clamp(min=1e-30).log()).sum() - entropy
        return loss, {"teacher_entropy": entropy, "teacher_divergence": divergence}

    def pair(self) -> tuple[nn.Module, nn.Module]:
        return self.student, self.teacher

    def examined(self, pixels: Tensor) -> Tensor:
        """The teacher's tokens: see `Objective`."""
        with torch.no_grad():
            return normalised(self.teacher.encoder(pixels))

    def update_target(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, parameter by parameter; see `jk.ema_update_`."""
        ema_update_(list(self.teacher.parameters()), list(self.student.parameters()), momentum)


def build_dino(
    name: str = "vit_small",
    *,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    hidden_dim: int = 2048,
    bottleneck: int = 256,
    prototypes: int = 65536,
    num_global: int = 2,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    centre_momentum: float = 0.9,
    use_activation_checkpointing: bool = False,
    encoder: dict[str, Any] | None = None,
    seed: int | None = None,
) -> DINO:
    """DINO with an encoder of a named size; the defaults are its ViT-S/16. `encoder` holds further keyword arguments for it.

    With `seed` the weights depend on it alone, and torch's global generator is left as it was.

    Raises:
        ValueError: the name is unknown, or `patch_size` does not divide the size.

    Example:
        >>> model = build_dino("vit_tiny", img_size=32, patch_size=8, prototypes=64, encoder={"depth": 1})
        >>> any(p.requires_grad for p in model.target_encoder.parameters())
        False
    """
    with seeded_weights(seed):
        built = build_image_encoder(name, img_size, patch_size, use_activation_checkpointing, encoder)
        head = DINOHead(built.embed_dim, hidden_dim, bottleneck, prototypes)
    return DINO(built, head, num_global, student_temperature, teacher_temperature, centre_momentum)
