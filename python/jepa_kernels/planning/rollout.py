"""What a world model expects of many action sequences at once: rollouts in latent space over cached keys and values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.ac_predictor import VisionTransformerPredictorAC
from ..models.ac_training import normalize_tokens
from ..models.kv_cache import KVCache

# (state (S, A), action (S, A)) -> next state (S, A)
NextState = Callable[[Tensor, Tensor], Tensor]


class LatentRollout:
    """Rolls a predictor out from one past, for a batch of candidate action sequences.

    Formula: z[t + 1] = f(z[0..t], actions[0..t], states[0..t]) at the last frame, f the predictor followed by
    `normalize_tokens`; states follow `next_state(state, action)`.

    What the candidates share is computed once: the frames before the last observed one, whose actions are known, go through
    the predictor with batch size 1, and every candidate reads their keys and values without a copy. From the last observed
    frame on each step computes one frame for each candidate, where recomputation would do all frames so far.

    Shapes: `tokens` (1, T * P, D), the observed frames as `normalize_tokens` leaves them; `states` (1, T, A); `past_actions`
    (1, T - 1, A), None for T = 1; `extrinsics` (1, T, A - 1), whose last row serves all future frames. A call takes actions
    (S, H, A) and returns the tokens after each action, (S, H, P, D), float32 at least where normalised.

    Args:
        batch_size: candidates rolled out at a time, to bound memory: a cache of `batch_size` times H frames lives through a
            call and is kept for the next; None takes all at once. Results do not depend on it but for rounding.
        normalize_reps: apply `normalize_tokens` to predictions, as V-JEPA 2-AC does.

    Raises:
        ValueError: more than one past, actions that do not fit, and what the predictor refuses.

    Cost: S * H frames of the predictor, where recomputation costs S * (H T + H (H - 1) / 2).

    Deterministic: as the predictor is. No gradient.

    Source: V-JEPA 2 (Assran et al., 2025); caching is exact since no frame sees a later one.

    Example:
        >>> predictor = VisionTransformerPredictorAC(32, 16, embed_dim=64, predictor_embed_dim=48, depth=1, num_heads=2)
        >>> rollout = LatentRollout(predictor, torch.zeros(1, 4, 64), torch.zeros(1, 1, 7))
        >>> rollout(torch.zeros(5, 3, 7)).shape
        torch.Size([5, 3, 4, 64])
    """

    @torch.no_grad()
    def __init__(
        self,
        predictor: VisionTransformerPredictorAC,
        tokens: Tensor,
        states: Tensor,
        past_actions: Tensor | None = None,
        extrinsics: Tensor | None = None,
        *,
        next_state: NextState | None = None,
        batch_size: int | None = None,
        normalize_reps: bool = True,
    ) -> None:
        if tokens.shape[0] != 1 or states.shape[0] != 1:
            raise ValueError(f"a rollout starts from one past; got batch sizes {tokens.shape[0]} and {states.shape[0]}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be None or at least 1; got {batch_size}")
        self.predictor, self.batch_size, self.normalize_reps = predictor, batch_size, normalize_reps
        self.next_state = next_state or _hold
        patches = predictor.patches_per_frame
        older = tokens.shape[1] // patches - 1
        known = 0 if past_actions is None else past_actions.shape[1]
        if known != older:
            raise ValueError(f"{older + 1} observed frames need {older} past actions, between them; got {known}")
        self._last, self._state = tokens[:, older * patches :], states[:, -1:]
        self._extrinsics = None if extrinsics is None else extrinsics[:, -1:]
        self._past: KVCache | None = None
        if past_actions is not None and older:
            self._past = predictor.new_cache(1, older)
            cut = None if extrinsics is None else extrinsics[:, :older]
            predictor.extend(self._past, tokens[:, : older * patches], past_actions, states[:, :older], cut)
        self._cache: KVCache | None = None

    @torch.no_grad()
    def __call__(self, actions: Tensor) -> Tensor:
        wanted = self.predictor.action_embed_dim
        if actions.ndim != 3 or actions.shape[2] != wanted or 0 in actions.shape:
            raise ValueError(f"actions must be (candidates, horizon, {wanted}), none of them 0; got {tuple(actions.shape)}")
        parts = actions.split(self.batch_size or actions.shape[0])
        return torch.cat([self._roll(part) for part in parts])

    def _roll(self, actions: Tensor) -> Tensor:
        candidates, horizon, _ = actions.shape
        cache = self._empty_cache(candidates, horizon)
        # Of batch size 1 until candidates differ: what is embedded before that is embedded once.
        tokens, state = self._last, self._state
        frames = []
        for step in range(horizon):
            action = actions[:, step : step + 1]
            tokens = self.predictor.extend(cache, tokens, action, state, self._extrinsics)
            tokens = normalize_tokens(tokens) if self.normalize_reps else tokens
            frames.append(tokens)
            if step + 1 < horizon:
                state = self.next_state(state[:, 0].expand(candidates, -1), action[:, 0])[:, None]
        return torch.stack(frames, dim=1)

    def _empty_cache(self, candidates: int, horizon: int) -> KVCache:
        cache = self._cache
        if cache is None or (cache.batch, cache.capacity) != (candidates, horizon):
            cache = self._cache = self.predictor.new_cache(candidates, horizon, self._past)
        cache.rewind()
        return cache


def _hold(state: Tensor, action: Tensor) -> Tensor:
    """The state of a world that has none besides its pixels."""
    return state
