"""`EMATarget`: the target encoder that follows an online module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.ema_update import checked_momentum, ema_update_
from ..ops import ema_update as operator
from ..ops import plans
from . import pairing
from .schedules import ConstantMomentum

_PREFIXES = ("module.", "backbone.", "_orig_mod.")


class EMATarget:
    """A copy of a module whose parameters follow the module's: target <- m * target + (1 - m) * online at every
    `update()`.

    Formula: that of `jk.ema_update_`, for all parameters in one launch, frozen ones (position embeddings) included.
    Buffers are left as copied, as the official code does; `buffers=True` copies them from the online module at every
    update.

    Args:
        module: the online module; wrapped by `DistributedDataParallel` or `torch.compile`, the one inside is
            followed.
        momentum: a number, or a callable of the step number (0 at the first update), such as `LinearMomentum(0.996,
            1.0, steps)`.
        target: the target to use instead of a deep copy of `module`; its values are overwritten with the module's,
            unless `overwrite` is False.
            FSDP2 modules cannot be copied: build a second module, apply `fully_shard` to both alike, and pass it
            here. Updates touch local shards only.
        buffers: copy buffers at every update.
        shadow_dtype: bfloat16 or float16 for a second copy, `shadow`, that every update writes rounded: the target's
            forward pass then needs no casts.
        stochastic_rounding, seed: for targets in bfloat16; see `jk.ema_update_`. Step s uses the key `seed + s`.

    Attributes: `module`, the target, in evaluation of gradients frozen; `shadow`, its low-precision copy or None;
    `step`, updates so far. Calling the object runs the shadow if there is one, otherwise the target, without
    gradients.

    Raises:
        ValueError: the structures of target and online module differ (also when they diverge later: the update names
            the tensor and changes nothing), a momentum outside [0, 1] or NaN, an FSDP2 module without `target`, a
            shadow of sharded parameters.

    Cost: 12 bytes a parameter in float32, plus 2 with a shadow. Each update makes sure that every parameter is the
    same object at the same address; that costs about 15 ns a tensor.

    Deterministic: yes, bit for bit.

    Source: momentum encoder of He et al., MoCo (2020), as I-JEPA and V-JEPA use it.

    Example:
        >>> online = nn.Linear(2, 1, bias=False)
        >>> target = EMATarget(online, momentum=0.75)
        >>> with torch.no_grad():
        ...     _ = target.module.weight.zero_(), online.weight.fill_(1.0)
        >>> target.update()
        >>> target.module.weight
        Parameter containing:
        tensor([[0.2500, 0.2500]])
    """

    def __init__(
        self,
        module: nn.Module,
        momentum: float | Callable[[int], float] = 0.99925,
        *,
        target: nn.Module | None = None,
        overwrite: bool = True,
        buffers: bool = False,
        shadow_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self._online = pairing.unwrapped(module)
        self.momentum = momentum if callable(momentum) else ConstantMomentum(momentum)
        self.buffers, self.stochastic_rounding, self.seed, self.step = buffers, stochastic_rounding, seed, 0
        if target is None and pairing.is_sharded(self._online):
            raise ValueError(
                "EMATarget: FSDP2 modules cannot be copied; pass a second module, sharded alike, as target=..."
            )
        self.module = copy.deepcopy(self._online) if target is None else pairing.unwrapped(target)
        self.module.requires_grad_(False)
        for parameter in self.module.parameters():
            parameter.grad = None
        self.shadow = None if shadow_dtype is None else pairing.shadow_module(self.module, shadow_dtype)
        self._sharded = False
        self._pair()
        if target is not None and overwrite:
            self.copy_from_online()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return (self.module if self.shadow is None else self.shadow)(*args, **kwargs)

    def _pair(self) -> None:
        """Pairs target, online and shadow tensors by name, and prepares the quick look that later updates take."""
        self._sharded = pairing.is_sharded(self.module) or pairing.is_sharded(self._online)
        if self._sharded:
            pairing.reshard(self.module)
            pairing.reshard(self._online)
        pairs = pairing.paired(self.module, self._online, buffers=False)
        self._online_of = {id(online): index for index, (_, _, online) in enumerate(pairs)}
        self.targets = [pairing.local(target) for _, target, _ in pairs]
        self.online = [pairing.local(online) for _, _, online in pairs]
        self.shadows: list[Tensor] = []
        modules = [self.module, self._online]
        if self.shadow is not None:
            self.shadows = [twin for _, twin, _ in pairing.paired(self.shadow, self.module, buffers=False)]
            modules.append(self.shadow)
        self._buffer_pairs = self._paired_buffers() if self.buffers else []
        self._structure = plans.watch_slots(
            [d for module in modules for d in pairing.dictionaries(module, buffers=self.buffers)]
        )
        self._tensors = [*self.targets, *self.online, *self.shadows]
        self._watch = plans.watch_tensors(self._tensors)
        self._run: Callable[..., None] | None = None
        self._forced: str | None = None

    def _paired_buffers(self) -> list[tuple[Tensor, Tensor]]:
        modules = [self.module] + ([] if self.shadow is None else [self.shadow])
        known = {name for name, _ in self._online.named_parameters()}
        return [
            (copied, source)
            for module in modules
            for name, copied, source in pairing.paired(module, self._online, buffers=True)
            if name not in known
        ]

    def refresh(self) -> None:
        """Looks whether modules or tensors changed since the last update, and pairs them anew if so; `update` calls it."""
        if self._sharded:
            pairing.reshard(self.module)
            pairing.reshard(self._online)
        if not (self._structure.unchanged() and self._watch.unchanged(self._tensors)):
            self._pair()

    def index_of(self, parameter: Tensor) -> int | None:
        """The place of an online parameter in `targets`, or None where the target does not follow it."""
        return self._online_of.get(id(parameter))

    def next_momentum(self, momentum: float | Tensor | None = None) -> float | Tensor:
        """The momentum of the coming update: the one given, or the schedule's."""
        device = self.targets[0].device if self.targets else torch.device("cpu")
        return checked_momentum(self.momentum(self.step) if momentum is None else momentum, device, "EMATarget")

    def update(self, momentum: float | Tensor | None = None) -> None:
        """One step of the target towards the online module; `momentum` takes the place of the schedule's for this step."""
        self.refresh()
        chosen, seed = self.next_momentum(momentum), (self.seed + self.step) % 2**63
        forced = operator.forced()
        if self._run is None or self._forced != forced or not plans.direct():
            options: dict[str, Any] = {
                "shadows": self.shadows or None,
                "stochastic_rounding": self.stochastic_rounding,
                "seed": seed,
            }
            ema_update_(self.targets, self.online, chosen, **options)
            self._run, self._forced = operator.PLANS.find(self.targets, self.online, self.shadows), forced
        else:
            plans.written([*self.targets, *self.shadows])  # before the update sweeps what `refresh` read out of the caches
            self._run(chosen, self.stochastic_rounding, seed)
        self.finish_step()

    def update_some(self, places: list[int], momentum: float | Tensor) -> None:
        """Moves the targets at these places only; for optimisers that move the others themselves."""
        ema_update_(
            [self.targets[i] for i in places],
            [self.online[i] for i in places],
            momentum,
            shadows=[self.shadows[i] for i in places] if self.shadows else None,
            stochastic_rounding=self.stochastic_rounding,
            seed=(self.seed + self.step) % 2**63,
        )

    @torch.no_grad()
    def finish_step(self, skipped: bool | Tensor = False) -> None:
        """Copies buffers where that was asked for and counts the step. A step that was skipped counts, but copies
        nothing."""
        if isinstance(skipped, Tensor):
            for copied, source in self._buffer_pairs:
                copied.copy_(torch.where(skipped != 0, copied, source))
        elif not skipped:
            for copied, source in self._buffer_pairs:
                copied.copy_(source)
        self.step += 1

    @torch.no_grad()
    def copy_from_online(self) -> None:
        """Sets target and shadow to the online module's values, buffers included."""
        for _, target, online in pairing.paired(self.module, self._online, buffers=True):
            target.copy_(online)
        self._write_shadow()

    @torch.no_grad()
    def _write_shadow(self) -> None:
        if self.shadow is not None:
            for _, twin, target in pairing.paired(self.shadow, self.module, buffers=True):
                twin.copy_(target)

    def state_dict(self) -> dict[str, Any]:
        """The target's state and the number of updates so far; the shadow follows from the target."""
        return {"module": self.module.state_dict(), "step": self.step, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads what `state_dict` gave, or a target encoder of the official code: its checkpoint with the entry
        `target_encoder`, or that entry itself. Prefixes that wrappers put before names (`module.`, `backbone.`) are
        dropped.

        Raises:
            RuntimeError: keys or shapes do not fit the target (torch names them).
        """
        if "target_encoder" in state:
            state = state["target_encoder"]
        ours = "module" in state and "step" in state and isinstance(state["module"], Mapping)
        weights = state["module"] if ours else {_bare(name): value for name, value in state.items()}
        self.module.load_state_dict(weights)
        if ours:
            self.step, self.seed = int(state["step"]), int(state.get("seed", self.seed))
        self._write_shadow()


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
