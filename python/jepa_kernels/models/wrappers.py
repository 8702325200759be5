"""The official wrappers over several clip lengths and masks; they put `backbone.` in front of every key."""

from __future__ import annotations

from torch import Tensor, nn


class MultiSeqWrapper(nn.Module):
    """Runs the encoder on each group of clips, once per mask.

    `x` is a list of clip tensors, one a length; `masks[i]` the list of masks (B, K) for `x[i]`. Returns a list of
    lists of (B, K, D), or a list of (B, N, D) without masks.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: list[Tensor], masks: list[list[Tensor]] | None = None) -> list[Tensor] | list[list[Tensor]]:
        if masks is None:
            return [self.backbone(clips) for clips in x]
        return [[self.backbone(clips, masks=mask) for mask in group] for clips, group in zip(x, masks, strict=True)]


class PredictorMultiSeqWrapper(nn.Module):
    """Runs the predictor on every output of `MultiSeqWrapper`; the clip-length group chooses the mask token."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self, x: list[list[Tensor]], masks_x: list[list[Tensor]], masks_y: list[list[Tensor]]
    ) -> list[list[Tensor]]:
        return [
            [self.backbone(*task, mask_index=group) for task in zip(*tasks, strict=True)]
            for group, tasks in enumerate(zip(x, masks_x, masks_y, strict=True))
        ]
