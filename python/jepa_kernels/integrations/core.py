"""`patch`: finds the modules of known code bases in a model and puts this package's operators into them."""

from __future__ import annotations

from typing import Any

from torch import nn

from . import swap
from .report import Entry, Report
from .targets import Target, all_targets, nothing_to_replace, parameter_names
from .verify import disagreement, outputs_of, probe_reason

ROOT = "(the model)"


def patch(model: nn.Module, verify: Any = None) -> Report:
    """Makes a model of a known code base run on these operators, in place; `report.undo()` is the way back.

    Formula: none of its own. Each replaced forward computes what the original computes, from the same parameters; only the
    order of roundings differs.

    Modules are matched one by one, by the name of their class, the parameters of its forward and the attributes of the
    instance, wherever they sit in `model`: it may be wrapped (DistributedDataParallel, torch.compile) before or after.
    Only the class of an instance changes, to a subclass of its own. Parameters, buffers, hooks, state-dict keys, the
    training flag, `isinstance`, `copy.deepcopy` and pickles are as before; a pickle of a patched model needs this package
    to load, a state dict does not. Patching again changes nothing more.

    Shapes: any model. Dtypes: the model's own, under autocast or not; a model in float64 runs on the reference backend.

    Args:
        model: the model, or a part of one.
        verify: example inputs, one tensor, a tuple of positional or a dict of keyword arguments. The model then runs on
            them before and after in evaluation mode, and unless the outputs agree the patch is undone.

    Raises:
        TypeError: `model` is not a module.
        ValueError: with `verify`, the outputs before and after differ by more than the dtype explains.

    Cost: no tensor is copied or moved, but one: the AC predictor of V-JEPA 2 gives up its dense mask.

    Deterministic: yes.

    Source: instance-wise, reversible patching as in Hugging Face kernels.

    Example:
        >>> import torch, jepa_kernels as jk
        >>> report = jk.patch(torch.nn.Linear(2, 2))
        >>> print(report)
        jepa-kernels: 0 modules patched
          no module of a code base that is known here; nothing was changed
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch: model is a {type(model).__name__}; give a torch.nn.Module")
    report = Report()
    before = None if verify is None else outputs_of(model, verify)
    try:
        _patch(model, report)
    except BaseException:
        report.undo()
        raise
    if before is None:
        return report
    try:
        difference = disagreement(before, outputs_of(model, verify))
    except BaseException:
        report.undo()
        raise
    if difference is not None:
        report.undo()
        raise ValueError(f"patch: the patched model does not compute what it did, and was restored: {difference}")
    return report


def unpatch(model: nn.Module) -> int:
    """Restores every patched module inside `model`, also of a copy or a pickle, and returns their number.

    Raises:
        TypeError: `model` is not a module.
        RuntimeError: another tool has replaced the class of a patched module since; nothing is changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"unpatch: model is a {type(model).__name__}; give a torch.nn.Module")
    patched = [(name, module) for name, module in model.named_modules() if swap.is_patched(module)]
    for name, module in patched:
        swap.check_restorable(module, name)
    for _, module in patched:
        swap.swap_back(module)
    return len(patched)


def _patch(model: nn.Module, report: Report) -> None:
    parents = {id(child): parent for parent in model.modules() for child in parent.children()}
    names = {target.class_name for target in all_targets().values() if not target.within}
    around: dict[int, bool] = {}  # modules whose linear layers are replaced: all inside, or the direct ones
    for name, module in model.named_modules():
        target: Target | None
        if swap.is_patched(module):
            target = swap.patch_of(module)[1]
            _note(report.already, name, module, target)
        elif names & {cls.__name__ for cls in type(module).__mro__}:
            target, reason = _choose(module, parents.get(id(module)), names)
            if target is None and reason is None:
                continue
            if target is None or reason is not None:
                text = target.code_base if target else ""
                report.left.append(Entry(name or ROOT, type(module).__name__, text, str(reason), module))
                continue
            swap.swap(module, target)
            _note(report.replaced, name, module, target)
        else:
            continue
        if target.around is not None:
            place = _ancestor(module, target.around, parents)
            around[id(place)] = around.get(id(place), False) or target.around > 0
    _patch_within(model, around, report)


def _note(entries: list[Entry], name: str, module: nn.Module, target: Target) -> None:
    entries.append(Entry(name or ROOT, type(module).__name__, target.code_base, target.what, module))


def _ancestor(module: nn.Module, levels: int, parents: dict[int, nn.Module]) -> nn.Module:
    """The module so many levels above, or the highest there is."""
    for _ in range(levels):
        module = parents.get(id(module), module)
    return module


def _patch_within(model: nn.Module, around: dict[int, bool], report: Report) -> None:
    """Replaces linear layers and MLPs where the first pass found a model that is known."""
    chosen: dict[int, bool] = {}
    for place in model.modules():
        if id(place) in around:
            chosen |= {id(part): True for part in (place.modules() if around[id(place)] else place.children())}
    targets = [target for target in all_targets().values() if target.within]
    for name, module in model.named_modules():
        if id(module) not in chosen or swap.is_patched(module) or "forward" in module.__dict__:
            continue
        owner = next(cls for cls in type(module).__mro__ if "forward" in cls.__dict__)
        for target in targets:
            if not target.recognises(module, owner, None) or target.refuse(module) or probe_reason(module, target):
                continue  # its own forward stays, and so do layers of other classes: nothing was expected of them
            swap.swap(module, target)
            _note(report.replaced, name, module, target)
            break


def _choose(module: nn.Module, parent: nn.Module | None, names: set[str]) -> tuple[Target | None, str | None]:
    """The target of a module whose class, or a base of it, has a known name; and why it must not be applied, or None.

    Without either there is nothing to replace.
    """
    if "forward" in module.__dict__:
        return None, "its forward was replaced on the instance (accelerate's hooks do that); patch before that, or remove it"
    owner = next(cls for cls in type(module).__mro__ if "forward" in cls.__dict__)
    if owner.__name__ not in names:
        base = next(cls.__name__ for cls in type(module).__mro__ if cls.__name__ in names)
        return None, f"it is a {base} whose forward {owner.__name__} overrides"
    for target in all_targets().values():
        if not target.within and target.recognises(module, owner, parent):
            return target, _device_reason(module) or target.refuse(module) or probe_reason(module, target)
    if nothing_to_replace(owner):
        return None, None
    return None, f"no known version of {owner.__name__}: forward({', '.join(parameter_names(owner))})"


def _device_reason(module: nn.Module) -> str | None:
    """None, or that the module's own parameters are not together; its blocks may be elsewhere, as in a split model."""
    leaves = [child for child in module.children() if not list(child.children())]
    parameters = [*module.parameters(recurse=False), *(p for leaf in leaves for p in leaf.parameters())]
    devices = sorted({str(parameter.device) for parameter in parameters})
    return f"its parameters are on {' and '.join(devices)}; move them to one device" if len(devices) > 1 else None
