"""A target: one class of one code base whose forward has a faster equivalent here, and how to recognise it."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Modules of this package with a TARGETS each; read in this order, so the first that recognises a module wins.
_CODE_BASES = ("transformers", "timm", "dinov2", "vjepa2", "jepa", "ijepa", "lejepa", "eb_jepa", "official", "linears")


def _no_objection(*_args: Any, **_kwargs: Any) -> None:
    return None


def _nothing(_module: nn.Module) -> None:
    return None


@dataclass(frozen=True)
class Target:
    """One class and its replacement forward.

    Attributes:
        code_base: name of the code base, for the report.
        class_name: name of the class that defines the forward.
        signatures: parameter names of that forward without self, one tuple for each known version.
        attributes: names that an instance of a known version has.
        what: what the replacement does, for the report.
        forward: the replacement, called as `forward(module, *args, **kwargs)`.
        unsupported: `unsupported(module, *args, **kwargs)`, None or why this call keeps the original forward.
        refuse: `refuse(module)`, None or why this instance must not be patched.
        accepts_parent: whether the module that holds the instance fits; tells classes of one name apart.
        probe: `probe(module)`, a small input on which the replacement must agree with the original; for classes whose name,
            signature and attributes other code may share.
        around: 0 where the linear layers directly inside the module are replaced with it, 1 for all inside its parent (the
            block of an attention), 2 for all inside the parent of that; None for none.
        within: whether it is looked for only there, as its name alone says too little.
        plain_signatures: those of known versions in which there is nothing to replace; ("*",) stands for any.
        install, uninstall: what else changes on the instance, and the way back.
    """

    code_base: str
    class_name: str
    signatures: tuple[tuple[str, ...], ...]
    attributes: tuple[str, ...]
    what: str
    forward: Callable[..., Any]
    unsupported: Callable[..., str | None] = _no_objection
    refuse: Callable[[nn.Module], str | None] = _no_objection
    accepts_parent: Callable[[nn.Module | None], bool] = lambda _parent: True
    probe: Callable[[nn.Module], Tensor] | None = None
    around: int | None = None
    within: bool = False
    plain_signatures: tuple[tuple[str, ...], ...] = ()
    install: Callable[[nn.Module], None] = _nothing
    uninstall: Callable[[nn.Module], None] = _nothing

    @property
    def key(self) -> str:
        """Names the target in pickles."""
        return f"{self.code_base}.{self.class_name}"

    def recognises(self, module: nn.Module, owner: type, parent: nn.Module | None) -> bool:
        """Whether `module`, whose forward `owner` defines, is a known version of this class."""
        return (
            owner.__name__ == self.class_name
            and parameter_names(owner) in self.signatures
            and all(hasattr(module, name) for name in self.attributes)
            and self.accepts_parent(parent)
        )


def nothing_to_replace(owner: type) -> bool:
    """Whether `owner` is a known version of a class that has nothing to replace."""
    targets = [target for target in all_targets().values() if target.class_name == owner.__name__]
    plain = [signature for target in targets for signature in target.plain_signatures]
    return ("*",) in plain or parameter_names(owner) in plain


def parameter_names(owner: type) -> tuple[str, ...]:
    """Names of the parameters of a class's forward, without self; `**kwargs` with its stars."""
    forward = owner.__dict__["forward"]
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    return tuple(stars.get(parameter.kind, "") + parameter.name for parameter in parameters)


@functools.lru_cache(maxsize=1)
def all_targets() -> dict[str, Target]:
    """Every target by its key."""
    modules = (importlib.import_module(f"{__package__}.{name}") for name in _CODE_BASES)
    return {target.key: target for module in modules for target in module.TARGETS}
