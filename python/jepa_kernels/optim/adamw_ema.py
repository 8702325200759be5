"""`AdamWEMA`: AdamW, the target's EMA and low-precision copies of both in one pass over the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..functional.adamw_ema import check_hyper, check_lists, check_max_norm
from ..ops.adamw_ema import Scalars
from .device_numbers import DeviceNumbers
from .ema_target import EMATarget
from .pairing import local
from .step_plan import StepPlan, reduced_squares

# Options of torch.optim.AdamW that its state carries and this optimiser does not offer.
_REFUSED = ("amsgrad", "maximize", "differentiable")


class AdamWEMA(torch.optim.Optimizer):
    """AdamW that also moves an `EMATarget` and writes low-precision copies, reading and writing every value once.

    Formula: that of `jk.adamw_ema_`: clipping by the global norm, AdamW as `torch.optim.AdamW` computes it, then the
    target's EMA towards the new parameters. Parameters of the target that have no gradient (frozen position
    embeddings) follow as in `EMATarget.update`; do not call that beside `step`.

    Args:
        params, lr, betas, eps, weight_decay: as `torch.optim.AdamW`; `jk.optim.parameter_groups` leaves decay off
            for biases and 1-D parameters.
        target: the `EMATarget` to move, or None. Its schedule gives the momentum; `step(momentum=...)` replaces it.
        shadows: {parameter: its low-precision twin} from `jk.optim.shadows_of`. The twins are rewritten at every
            step; a parameter without a gradient takes its twin's, so that the model that trains may be the
            low-precision one.
        max_grad_norm: largest norm of all gradients together, as `torch.nn.utils.clip_grad_norm_`; None does not
            clip.
        skip_nonfinite: leave out a step whose gradients hold an infinity or NaN: parameters, state and target stay
            as they are, and `skipped_steps` counts it. Like clipping it costs one more pass over the gradients.
        capturable: the step may be captured in a CUDA graph. Pass lr and momentum as tensors if they change between
            replays.

    A `torch.amp.GradScaler` works as with torch's fused optimisers: its scale and found_inf are taken into the step.

    State: `step`, `exp_avg`, `exp_avg_sq` under the keys of `torch.optim.AdamW`; either loads the other's
    `state_dict`.

    Attributes: `grad_norm`, the norm of the last step's gradients before clipping (float64 tensor on the device; 0
    where nothing asked for it), `skipped_steps`, how many steps were left out (waits for the device).

    Raises:
        ValueError: hyperparameters out of range, parameters on several devices, a target whose structure differs
            from the online module's, a loaded state with amsgrad, maximize or differentiable.

    Cost: 28 bytes a parameter, 8 for the target, 2 for each shadow, 4 for norm or finiteness, in float32.

    Deterministic: yes, bit for bit, on each backend.

    Source: AdamW of Loshchilov and Hutter (2019).

    Example:
        >>> import jepa_kernels as jk
        >>> encoder = torch.nn.Linear(3, 2)
        >>> target = jk.EMATarget(encoder, momentum=0.99)
        >>> optimizer = jk.AdamWEMA(jk.optim.parameter_groups(encoder, 0.04), lr=1e-3, target=target, max_grad_norm=1.0)
        >>> encoder(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> target.step, optimizer.skipped_steps
        (1, 0)
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        target: EMATarget | None = None,
        shadows: Mapping[Tensor, Tensor] | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = True,
        capturable: bool = False,
    ) -> None:
        check_hyper(lr, betas, eps, weight_decay)
        check_max_norm(max_grad_norm)
        self.target, self.shadows = target, dict(shadows or {})
        self.max_grad_norm, self.skip_nonfinite = max_grad_norm, skip_nonfinite
        self._plan: StepPlan | None = None
        self._status: Tensor | None = None
        self._numbers: dict[str, DeviceNumbers] = {}
        super().__init__(
            params,
            # The keys of torch.optim.AdamW, so that each loads the other's state.
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": False,
                "foreach": None,
                "maximize": False,
                "capturable": capturable,
                "differentiable": False,
                "fused": None,
                "decoupled_weight_decay": True,
            },
        )

    # -- what a step needs
    # ---------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer`; the group's hyperparameters are checked."""
        full = {**self.defaults, **param_group}
        check_hyper(full["lr"], full["betas"], full["eps"], full["weight_decay"])
        super().add_param_group(param_group)
        self._plan = None

    def _gradient(self, param: Tensor) -> Tensor | None:
        if param.grad is not None or not self.shadows:
            return param.grad
        twin = self.shadows.get(param)
        return None if twin is None else twin.grad

    def _active(self) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Parameters that have a gradient, the gradients, and the group of each."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        groups: list[int] = []
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                grad = self._gradient(param)
                if grad is None:
                    continue
                if grad.is_sparse:
                    raise ValueError(
                        f"AdamWEMA: a parameter of shape {tuple(param.shape)} has a sparse gradient; make it dense"
                    )
                params.append(param)
                grads.append(grad)
                groups.append(index)
        return params, grads, groups

    def _init_state(self, params: list[Tensor]) -> None:
        for param in params:
            state = self.state[param]
            if not state:
                device = local(param).device
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def _planned(self, params: list[Tensor], grads: list[Tensor], groups: list[int]) -> StepPlan:
        """The plan of a step over these parameters: the last one where nothing but gradients moved."""
        local_grads = [local(grad) for grad in grads]
        if self._plan is None or not self._plan.fits(params, self.target):
            self._init_state(params)
            self._plan = StepPlan(params, local_grads, groups, self.state, self.target, self.shadows, check_lists)
        else:
            self._plan.set_grads(local_grads)
        return self._plan

    # -- the step
    # ------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, momentum: float | Tensor | None = None) -> Any:
        """One step; `momentum` takes the place of the target's schedule for this step."""
        # Renamed after torch 2.11.
        (getattr(self, "_accelerator_graph_capture_health_check", None) or self._cuda_graph_capture_health_check)()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.target is not None:
            self.target.refresh()
            chosen: float | Tensor = self.target.next_momentum(momentum)
        else:
            chosen = 1.0
        params, grads, groups = self._active()
        if params:
            self._fused_step(params, grads, groups, chosen)
        if self.target is not None:
            self._follow_rest(chosen, stepped=bool(params))
        return loss

    def _fused_step(
        self, params: list[Tensor], grads: list[Tensor], groups: list[int], momentum: float | Tensor
    ) -> None:
        plan = self._planned(params, grads, groups)
        device = plan.device
        if self._status is None or self._status.device != device:
            self._status = torch.zeros(3, dtype=torch.float64, device=device)
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        limit = math.inf if self.max_grad_norm is None else self.max_grad_norm
        hyper = [number for g in self.param_groups for number in (g["lr"], *g["betas"], g["eps"], g["weight_decay"])]
        control = [momentum, limit, 1.0 if scale is None else scale, 0.0 if found_inf is None else found_inf]
        squares = plan.none
        if self.skip_nonfinite or self.max_grad_norm is not None:
            squares = reduced_squares(plan, grads)
        plan.update(
            Scalars(
                self._on_device("hyper", hyper, device).view(-1, 5),
                self._on_device("control", control, device),
                squares,
                self._status,
            )
        )

    def _on_device(self, name: str, values: list[Any], device: torch.device) -> Tensor:
        if name not in self._numbers or not self._numbers[name].fits(len(values), device):
            self._numbers[name] = DeviceNumbers(len(values), device)
        return self._numbers[name].set(values)

    def _follow_rest(self, momentum: float | Tensor, stepped: bool) -> None:
        """Moves the targets that the fused pass did not, and counts the target's step. A skipped step leaves them, too."""
        target = self.target
        assert target is not None
        skipped: Any = False
        if stepped and self._status is not None:
            skipped = self._status[1] if self._status.is_cuda else bool(self._status[1])
        if isinstance(skipped, Tensor):
            momentum = torch.where(skipped != 0, torch.ones_like(skipped), momentum)
        rest = list(range(len(target.targets)))
        if stepped and self._plan is not None:
            rest = self._plan.rest
        if rest and skipped is not True:
            target.update_some(rest, momentum)
        target.finish_step(skipped)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As `torch.optim.Optimizer`, for the gradients of shadows, too."""
        super().zero_grad(set_to_none)
        for twin in self.shadows.values():
            if twin.grad is not None:
                if set_to_none:
                    twin.grad = None
                else:
                    twin.grad.zero_()

    # -- what happened
    # -------------------------------------------------------------------------------------------------------------

    @property
    def grad_norm(self) -> Tensor:
        """Norm of the last step's gradients, unscaled and before clipping; float64, on the device."""
        return torch.zeros((), dtype=torch.float64) if self._status is None else self._status[0]

    @property
    def skipped_steps(self) -> int:
        """Steps left out for gradients that were not finite; waits for the device."""
        return 0 if self._status is None else int(self._status[2])

    # -- checkpoints
    # ---------------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state of this optimiser or of `torch.optim.AdamW`.

        Raises:
            ValueError: the state was made with an option that this optimiser does not have; nothing is loaded.
        """
        for index, group in enumerate(state_dict["param_groups"]):
            for option in _REFUSED:
                if group.get(option):
                    raise ValueError(
                        f"AdamWEMA: group {index} of the loaded state has {option}={group[option]}, which is not "
                        f"supported here"
                    )
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state.get(param)
                if state:
                    step = torch.as_tensor(state["step"], dtype=torch.float32, device=local(param).device)
                    state["step"] = step.reshape(()).clone()
        self._plan = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
