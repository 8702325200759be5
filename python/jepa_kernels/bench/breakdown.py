"""From profiler events to what a reader acts on: the parts of a step, the operators that take its time, what to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

PARTS = ("forward", "backward", "optimizer", "target update", "data", "python and idle")
CALL = "jepa-kernels call"  # the name of the range around each profiled call
TARGET_UPDATE = ("jepa_kernels::ema_update", "aten::_foreach_lerp", "aten::_foreach_mul", "aten::_foreach_add")

# The kind of work of an operator, by how its name begins; the first that fits.
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear", "mkldnn::_reorder"),
    "attention": (
        "aten::_scaled_dot_product",
        "aten::_flash_attention",
        "jepa_kernels::masked_attention",
        "GeneratedBackwardFor_jepa_kernels_masked_attention",
    ),
    "patch embedding": (
        "aten::convolution",
        "aten::mkldnn_convolution",
        "aten::cudnn_convolution",
        "jepa_kernels::patch_embed",
        "GeneratedBackwardFor_jepa_kernels_patch_embed",
    ),
    "copies, casts and gathers": (
        "aten::copy_",
        "aten::cat",
        "aten::fill_",
        "aten::index",
        "aten::gather",
        "aten::scatter",
        "aten::_index_put_impl_",
        "aten::sort",
    ),
}
POINTWISE = "pointwise, norms and sums"


class Event(Protocol):
    """What is read of a `torch.autograd.profiler_util.FunctionEvent`. Times are in microseconds."""

    name: str
    cpu_parent: Event | None
    self_cpu_time_total: float
    self_device_time_total: float


@dataclass(frozen=True)
class Operator:
    """One row of the top-kernels table, per call of the case."""

    name: str
    part: str
    calls: float
    seconds: float
    share: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def part_of(event: Event) -> str:
    """The part of a training step that an event belongs to, by its own name and those it was called from."""
    if event.name == CALL:
        return "python and idle"
    names = _ancestry(event)
    if any(name.startswith(("Optimizer.", "jepa_kernels::adamw_ema")) for name in names):
        return "optimizer"
    if any(name.startswith("autograd::engine::evaluate_function") or name.endswith("Backward0") for name in names):
        return "backward"
    if any(name.startswith(TARGET_UPDATE) for name in names):
        return "target update"
    if any(name.startswith("enumerate(DataLoader)") for name in names):
        return "data"
    return "forward"


def _ancestry(event: Event) -> list[str]:
    names, parent = [event.name], event.cpu_parent
    while parent is not None:
        names.append(parent.name)
        parent = parent.cpu_parent
    return names


def parts(events: Iterable[Event], wall_s: float, calls: int, *, device: bool) -> dict[str, float]:
    """Seconds per call in each part. On a device they are its busy time, and what the wall has beyond is idle."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for event in events:
        seconds[part_of(event)] += _own(event, device) * 1e-6 / calls
    busy = sum(value for part, value in seconds.items() if part != "python and idle")
    seconds["python and idle"] = max(wall_s - busy, 0.0)
    return seconds


def kinds(events: Iterable[Event], wall_s: float, calls: int, *, device: bool) -> dict[str, float]:
    """Seconds per call by kind of work; the optimiser and the target update are one kind, whatever they call. What the wall
    has beyond the operators is Python and idle; on a CPU operators' own bookkeeping is in the pointwise kind."""
    update = "optimizer and target update"
    seconds = dict.fromkeys((*KINDS, POINTWISE, update, "python and idle"), 0.0)
    for event in events:
        if event.name != CALL:
            kind = update if part_of(event) in ("optimizer", "target update") else _kind(event.name)
            seconds[kind] += _own(event, device) * 1e-6 / calls
    seconds["python and idle"] = max(wall_s - sum(seconds.values()), 0.0)
    return seconds


def _kind(name: str) -> str:
    return next((kind for kind, names in KINDS.items() if name.startswith(names)), POINTWISE)


def _own(event: Event, device: bool) -> float:
    return event.self_device_time_total if device else event.self_cpu_time_total


def operators(events: Iterable[Event], calls: int, *, device: bool, top: int = 20) -> list[Operator]:
    """The operators with the most time of their own, the slowest first."""
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        own = _own(event, device)
        if event.name != CALL and own > 0:
            entry = found.setdefault((event.name, part_of(event)), [0.0, 0.0])
            entry[0] += 1
            entry[1] += own * 1e-6
    total = sum(seconds for _, seconds in found.values()) or 1.0
    rows = [Operator(name, part, n / calls, s / calls, s / total) for (name, part), (n, s) in found.items()]
    return sorted(rows, key=lambda row: -row.seconds)[:top]


@dataclass(frozen=True)
class Advice:
    """What to change when operators of these names take at least this share of the call."""

    names: tuple[str, ...]
    share: float
    text: str


ADVICE = (
    Advice(("aten::_scaled_dot_product", "aten::scaled_dot_product", "aten::_flash_attention"), 0.1,
           "attention is PyTorch's: try jk.masked_attention with the mask as a rule, or jk.patch(model)"),
    Advice(("aten::sin", "aten::cos", "aten::repeat_interleave"), 0.03,
           "RoPE angles are rebuilt in every call: jk.masked_attention(rope=jk.Rope3D(...)) rotates inside the kernel"),
    Advice(("aten::convolution", "aten::mkldnn_convolution", "aten::cudnn_convolution"), 0.1,
           "the patch embedding is a convolution: jk.patch_embed computes only the kept patches, from uint8 pixels"),
    Advice(("aten::index", "aten::gather", "aten::index_select", "aten::take_along_dim"), 0.08,
           "gathers of tokens take much: give `keep` to jk.patch_embed, and ids to jk.jepa_loss"),
    Advice(("aten::copy_", "aten::clone", "aten::contiguous"), 0.1,
           "copies and casts take much: look for .contiguous(), .to(dtype) and a layout that an operator cannot read"),
    Advice(("aten::_foreach_", "aten::addcdiv_", "aten::addcmul_", "aten::lerp_"), 0.1,
           "the optimiser and the target update read the weights several times: jk.AdamWEMA does it in one pass"),
)  # fmt: skip


def advise(seconds: Mapping[str, float], rows: Sequence[Operator]) -> list[str]:
    """What to change, the largest saving first; at least one line."""
    total = sum(seconds.values()) or 1.0
    found: list[tuple[float, str]] = []
    idle = seconds["python and idle"] / total
    if idle >= 0.15:
        found.append((idle, "Python and launches: capture the step in a CUDA graph, torch.compile it, or enlarge the batch"))
    if seconds["data"] / total >= 0.1:
        found.append((seconds["data"] / total, "waiting for data: more loader workers, or decode ahead"))
    for advice in ADVICE:
        share = sum(row.share for row in rows if row.name.startswith(advice.names))
        if share >= advice.share:
            found.append((share, advice.text))
    lines = [f"{share:.0%}: {text}" for share, text in sorted(found, reverse=True)]
    if lines:
        return lines
    first = f"{rows[0].name} leads with {rows[0].share:.0%}" if rows else "nothing was recorded"
    return [f"no single cause stands out; {first}"]
