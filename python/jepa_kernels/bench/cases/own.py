"""A user's own model as a case: `bench run --own FILE.py`, where the file defines `cases()`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..correctness import Tolerance
from ..errors import BenchInputError
from .base import DTYPES, Case, Provider, Setting, Work

Variant = Callable[[nn.Module], Callable[..., Any]]
MakeInputs = Callable[[torch.Generator], tuple[Any, ...]]


@dataclass(frozen=True)
class ModelInputs:
    """The arguments of the model's forward, and the weights that every variant starts from."""

    arguments: tuple[Any, ...]
    weights: dict[str, Tensor]
    device: torch.device


@dataclass(frozen=True)
class Prepared:
    """One variant, ready to be called."""

    call: Callable[..., Any]
    model: nn.Module
    arguments: tuple[Any, ...]


def model_case(
    name: str,
    build: Callable[[], nn.Module],
    inputs: MakeInputs,
    variants: Mapping[str, Variant],
    *,
    train: bool = False,
    dtype: str = "fp32",
    tolerance: Tolerance | None = None,
) -> Case:
    """A case over one model: every variant is checked against the model in float64, then timed with the others.

    `build()` makes the model; `inputs(generator)` its positional arguments, batch first; `variants` maps a name to what
    turns the model into something to call, such as `torch.compile` or a function that patches it. The first is the peer
    of all ratios: `{"torch-eager": lambda model: model, ...}`. With `train` a call is forward and backward of the mean
    square of the output, and the gradients of all parameters are checked too. `dtype="bf16"` runs under autocast.

    FLOPs are those that torch counts in the plain model; bytes are the arguments, parameters and outputs once each.

    Raises:
        BenchInputError: no variant, or a dtype other than fp32 and bf16.
    """
    if not variants:
        raise BenchInputError(f"case {name!r} has no variants; give at least {{'torch-eager': lambda model: model}}")
    if dtype not in DTYPES:
        raise BenchInputError(f"case {name!r}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    run = partial(_run, train, dtype)

    def providers(_device: torch.device) -> Sequence[Provider]:
        return [Provider(key, run, partial(_prepare, build, variant)) for key, variant in variants.items()]

    return Case(
        operator="model",
        name=name,
        dtype=dtype,
        shape={"direction": "fwd-bwd" if train else "fwd"},
        make_inputs=partial(_inputs, build, inputs),
        providers=providers,
        work=partial(_work, build, train),
        reference=lambda x: _outputs(build, train, "fp32", x, double=True),
        low_precision=lambda x: _outputs(build, train, dtype, x),
        peer=next(iter(variants)),
        tags=frozenset({"own"}),
        tolerance=tolerance or Tolerance(floor={"bf16": 2.0**-8, "fp32": 2.0**-18}[dtype]),
    )


def _inputs(build: Callable[[], nn.Module], inputs: MakeInputs, setting: Setting) -> ModelInputs:
    torch.manual_seed(setting.seed)
    weights = {key: value.detach().clone() for key, value in build().state_dict().items()}
    arguments = tuple(_moved(a, setting.device) for a in inputs(setting.generator()))
    return ModelInputs(arguments, weights, setting.device)


def _moved(value: Any, *to: Any) -> Any:
    return value.to(*to) if isinstance(value, Tensor) else value


def _plain(model: nn.Module) -> nn.Module:
    return model


def _prepare(
    build: Callable[[], nn.Module], variant: Variant, inputs: ModelInputs, double: bool = False
) -> Prepared:
    model = build()
    model.load_state_dict(inputs.weights)
    model.to(inputs.device)
    arguments = inputs.arguments
    if double:
        model.double()
        arguments = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)
    return Prepared(variant(model), model, arguments)


def _run(train: bool, dtype: str, prepared: Prepared) -> list[Tensor]:
    """The output, and with `train` the gradients of the parameters."""
    device = next(prepared.model.parameters()).device
    with torch.set_grad_enabled(train), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
        out = prepared.call(*prepared.arguments)
        outputs = [out] if isinstance(out, Tensor) else [o for o in out if isinstance(o, Tensor)]
        if not train:
            return outputs
        loss = torch.stack([o.float().square().mean() for o in outputs]).sum()
    trained = [p for p in prepared.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return [*(o.detach() for o in outputs), *(g for g in gradients if g is not None)]


def _outputs(
    build: Callable[[], nn.Module], train: bool, dtype: str, inputs: ModelInputs, double: bool = False
) -> list[Tensor]:
    return _run(train, dtype, _prepare(build, _plain, inputs, double))


def _work(build: Callable[[], nn.Module], train: bool, inputs: ModelInputs) -> Work:
    prepared = _prepare(build, _plain, inputs)
    with FlopCounterMode(display=False) as counter:
        results = _run(train, "fp32", prepared)
    tensors = [a for a in inputs.arguments if isinstance(a, Tensor)]
    moved = [*tensors, *prepared.model.parameters(), *results]
    samples = tensors[0].shape[0] if tensors and tensors[0].ndim else 1
    return Work(counter.get_total_flops(), sum(t.numel() * t.element_size() for t in moved), samples, samples)


def load_cases(path: Path) -> list[Case]:
    """The list that `cases()` of a Python file returns; the file is run.

    Raises `BenchInputError` when it is missing, breaks, or gives anything but cases.
    """
    if not path.is_file():
        raise BenchInputError(f"--own {path} is not a file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BenchInputError(f"--own {path} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = list(module.cases())
    except BenchInputError:
        raise
    except Exception as error:
        raise BenchInputError(f"--own {path}: {type(error).__name__}: {error}") from error
    if not found or not all(isinstance(case, Case) for case in found):
        raise BenchInputError(f"--own {path}: cases() must return a list of cases, got {found!r}")
    return found
