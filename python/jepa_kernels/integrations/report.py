"""What a call of `patch` did, in numbers and words, and the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from . import swap


@dataclass(frozen=True)
class Entry:
    """One module of the model: its name in the model, its class, and what was done or why nothing was."""

    name: str
    class_name: str
    code_base: str
    text: str
    module: nn.Module = field(repr=False, compare=False)


@dataclass
class Report:
    """What `patch` replaced and what it left.

    `replaced`, `already` (patched by an earlier call) and `left` are lists of `Entry`; a report is true where something is
    patched. `fallbacks` counts, since the patch, the calls that kept the original forward because the kernels lack their
    arguments, by class and reason; a compiled graph counts none, the choice being part of it. `print(report)` shows all.

    Example:
        >>> import jepa_kernels as jk, torch
        >>> report = jk.patch(torch.nn.Linear(2, 2))
        >>> bool(report), len(report.replaced)
        (False, 0)
        >>> report.undo()
    """

    replaced: list[Entry] = field(default_factory=list)
    already: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    undone: bool = False

    def __bool__(self) -> bool:
        return bool(self.replaced or self.already) and not self.undone

    @property
    def fallbacks(self) -> dict[tuple[str, str], int]:
        """(class name, reason) -> number of calls that kept the original forward."""
        counts: Counter[tuple[str, str]] = Counter()
        for entry in (*self.replaced, *self.already):
            for reason, number in swap.fallback_counts(entry.module).items():
                counts[entry.class_name, reason] += number
        return dict(counts)

    def undo(self) -> None:
        """Gives every module that this call replaced its own class back. Calling it again does nothing.

        Raises:
            RuntimeError: another tool has replaced the class of a patched module since; nothing is changed then.
        """
        if self.undone:
            return
        present = [entry for entry in self.replaced if swap.is_patched(entry.module)]  # the others `unpatch` has restored
        for entry in present:
            swap.check_restorable(entry.module, entry.name)
        for entry in present:
            swap.swap_back(entry.module)
        self.undone = True

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"jepa-kernels: {len(self.replaced)} modules patched" + (" (undone)" if self.undone else "")
        yield from _grouped(self.replaced, "  ")
        if self.already:
            yield f"{len(self.already)} were patched before"
            yield from _grouped(self.already, "  ")
        if self.left:
            yield f"{len(self.left)} left as they are"
            yield from _grouped(self.left, "  ")
        if not (self.replaced or self.already or self.left):
            yield "  no module of a code base that is known here; nothing was changed"
        for (class_name, reason), number in self.fallbacks.items():
            yield f"{number} calls of {class_name} kept the original forward: {reason}"


def _grouped(entries: list[Entry], indent: str) -> Iterator[str]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for entry in entries:
        groups.setdefault((entry.code_base, entry.class_name, entry.text), []).append(entry.name)
    for (code_base, class_name, text), names in groups.items():
        where = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        label = f"{code_base} {class_name}" if code_base else class_name
        yield f"{indent}{len(names):4d} x {label} ({where}): {text}"
