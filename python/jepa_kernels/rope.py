"""Three-dimensional rotary position embedding by token position, as V-JEPA 2 defines it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

CONVENTIONS = ("vjepa2", "rotation")
PRECISIONS = ("fp32", "amp_compat", "native")
BASE = 10000.0
AXES = 3


class RopeTables(NamedTuple):
    """cos and signed sin of queries and keys, each (P, N, D), P = 1 or the batch size.

    y[c] = x[c] * cos[c] + x[c ^ 1] * sin[c]: sin is negative for even c, so one formula serves both partners.
    """

    q_cos: torch.Tensor
    q_sin: torch.Tensor
    k_cos: torch.Tensor
    k_sin: torch.Tensor


@dataclass(frozen=True, eq=False)
class Rope3D:
    """Rotary embedding of queries and keys by (frame, row, column).

    Formula. Each axis owns d = 2 * floor(floor(D / 3) / 2) channels of a head, in the order depth | height | width;
    the remaining D - 3 d channels stay as they are. With omega_j = 10000 ** (-j / (d / 2)) and a token at position p
    of the axis, channel c of the segment has the angle

        theta_c = p * omega[c mod (d / 2)]      convention "vjepa2": frequencies tiled over the halves
        theta_c = p * omega[c // 2]             convention "rotation": one frequency a pair

        y[2 i]     = x[2 i]     * cos(theta[2 i])     - x[2 i + 1] * sin(theta[2 i])
        y[2 i + 1] = x[2 i + 1] * cos(theta[2 i + 1]) + x[2 i]     * sin(theta[2 i + 1])

    In "vjepa2" the two angles of a pair differ, so the map is not a rotation and does not keep norms; released
    V-JEPA 2 weights need it. "rotation" is the orthogonal variant.

    Shapes. `positions` (N, 3), shared by the batch, or (B, N, 3); with `Ragged` (total, 3). They belong to the keys,
    and to the queries too unless `query_positions`, of the same form, is given. Position 0 is the identity, so a
    conditioning token that turns only the depth segment is (frame, 0, 0).

    Dtypes. Positions are float32. Tables are float32 (float64 for float64 queries), built from angles in float64 and
    rounded once: the error against the exact cosine is 6e-8, whatever the position. `precision` reproduces the
    roundings that a checkpoint was trained with; "low" is the dtype of the queries:

    - "fp32": none.
    - "amp_compat": the exponent j / (d / 2) is rounded to low, as under CUDA autocast. For float32 and float64
      queries, low is bfloat16, the dtype that V-JEPA 2 was trained in. Frequencies differ by up to 1.65 %.
    - "native": also the base (10000 is 9984 in bfloat16), base ** exponent, its inverse, p, p * omega, and the cosine
      and sine are rounded to low, as in a model converted to bfloat16 as a whole. For float32 queries every step is
      rounded to float32.

    The rotated queries and keys are rounded once to the dtype of the queries. (The original code in pure bfloat16
    also rounds both products before it adds them; "native" does not.)

    Errors. TypeError for a dtype other than float32, ValueError for a wrong shape, device, convention or precision.

    Cost. Tables: 16 N D bytes for each of P; they are built at the first use and kept on this object per head dim
    and dtype until the positions change, so share one object among the layers. Nothing is kept inside a compiled
    graph or during CUDA graph capture: there the tables are rebuilt from the positions at every replay.

    Determinism. Bitwise for one device.

    Source. V-JEPA 2 (Assran et al., 2025), arXiv:2506.09985.

    >>> rope = Rope3D.from_ids(torch.arange(8), grid=(2, 2))
    >>> rope.positions[5]
    tensor([1., 0., 1.])
    """

    positions: torch.Tensor
    query_positions: torch.Tensor | None = None
    convention: str = "vjepa2"
    precision: str = "fp32"
    _cache: dict[Any, RopeTables] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_positions("positions", self.positions)
        if self.query_positions is not None:
            _check_positions("query_positions", self.query_positions)
            if self.query_positions.device != self.positions.device:
                raise ValueError(
                    f"Rope3D: query_positions is on {self.query_positions.device}, positions on "
                    f"{self.positions.device}; move them to one device"
                )
        if self.convention not in CONVENTIONS:
            raise ValueError(f"Rope3D: convention is {self.convention!r}; choose one of {', '.join(CONVENTIONS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"Rope3D: precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")

    @classmethod
    def from_ids(
        cls,
        ids: torch.Tensor,
        grid: tuple[int, int],
        scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        *,
        convention: str = "vjepa2",
        precision: str = "fp32",
    ) -> Rope3D:
        """From token ids t * height * width + row * width + column, int64 (N,) or (B, N); grid is (height, width).

        `scale` multiplies frame, row and column: V-JEPA 2-AC snaps rows to the grid it was trained on with
        (1, trained / height, trained / width).
        """
        height, width = grid
        if height < 1 or width < 1:
            raise ValueError(f"Rope3D: grid is {(height, width)}; give (height, width), each at least 1")
        if ids.dtype != torch.int64:
            raise TypeError(f"Rope3D: ids have dtype {ids.dtype}; give int64 token ids")
        if ids.dim() not in (1, 2):
            raise ValueError(f"Rope3D: ids have shape {tuple(ids.shape)}; give (N,) or (B, N)")
        in_frame = ids % (height * width)
        axes = (ids // (height * width), in_frame // width, in_frame % width)
        positions = torch.stack([axis.float() * factor for axis, factor in zip(axes, scale, strict=True)], dim=-1)
        return cls(positions, convention=convention, precision=precision)

    def tables(self, head_dim: int, dtype: torch.dtype = torch.float32) -> RopeTables:
        """Tables for heads of `head_dim` channels and queries of `dtype`: see RopeTables."""
        if torch.compiler.is_compiling():
            return self._build(head_dim, dtype)  # the graph must contain the computation
        with torch.inference_mode(False):  # tables made in inference mode could not be saved for a later backward
            return self._cached(head_dim, dtype) if self._may_cache() else self._build(head_dim, dtype)

    def _may_cache(self) -> bool:
        # A captured graph must contain the computation, too, and inference tensors do not say when they change.
        if self.positions.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        return not any(p.is_inference() for p in (self.positions, self.query_positions) if p is not None)

    def _cached(self, head_dim: int, dtype: torch.dtype) -> RopeTables:
        # Positions written in place since the tables were built have another version.
        query_version = None if self.query_positions is None else self.query_positions._version
        versions = (self.positions._version, query_version)
        tables = self._cache.get((head_dim, dtype, versions))
        if tables is None:
            tables = self._build(head_dim, dtype)
            if type(tables.k_cos) is torch.Tensor:  # not the fake tensors of a tracer
                for stale in [key for key in self._cache if key[2] != versions]:
                    self._cache.pop(stale, None)  # another thread may have been here
                self._cache[head_dim, dtype, versions] = tables
        return tables

    def _build(self, head_dim: int, dtype: torch.dtype) -> RopeTables:
        k_cos, k_sin = _tables(self.positions, head_dim, dtype, self.convention, self.precision)
        if self.query_positions is None:
            return RopeTables(k_cos, k_sin, k_cos, k_sin)
        q_cos, q_sin = _tables(self.query_positions, head_dim, dtype, self.convention, self.precision)
        return RopeTables(q_cos, q_sin, k_cos, k_sin)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


def _check_positions(name: str, positions: torch.Tensor) -> None:
    if not isinstance(positions, torch.Tensor):
        raise TypeError(f"Rope3D: {name} is a {type(positions).__name__}; give a float32 tensor (N, 3)")
    if positions.dtype != torch.float32:
        raise TypeError(f"Rope3D: {name} has dtype {positions.dtype}; convert it with .float()")
    if positions.dim() not in (2, 3) or positions.shape[-1] != AXES:
        raise ValueError(f"Rope3D: {name} has shape {tuple(positions.shape)}; give (N, 3) or (B, N, 3)")


def _tables(
    positions: torch.Tensor, head_dim: int, dtype: torch.dtype, convention: str, precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    positions = positions.detach().double()
    if positions.dim() == 2:
        positions = positions[None]
    segment = 2 * (head_dim // AXES // 2)
    low = dtype if precision == "native" else None
    omega = _frequencies(segment, dtype, precision, positions.device)
    theta = _rounded(_rounded(positions, low)[..., None] * omega, low)  # [P, N, 3, d/2]
    theta = torch.cat([theta, theta], dim=-1) if convention == "vjepa2" else theta.repeat_interleave(2, dim=-1)
    sign = torch.ones(segment, dtype=torch.float64, device=positions.device)
    sign[0::2] = -1.0
    cos = _rounded(theta.cos(), low).flatten(-2)  # [P, N, 3 d]
    sin = (_rounded(theta.sin(), low) * sign).flatten(-2)
    untouched = (0, head_dim - AXES * segment)
    cos = torch.nn.functional.pad(cos, untouched, value=1.0)  # [P, N, D]
    sin = torch.nn.functional.pad(sin, untouched, value=0.0)
    table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return cos.to(table_dtype), sin.to(table_dtype)


def _frequencies(segment: int, dtype: torch.dtype, precision: str, device: torch.device) -> torch.Tensor:
    half = segment // 2
    exponent = torch.arange(half, dtype=torch.float64, device=device) / max(half, 1)
    if precision == "fp32":
        return BASE**-exponent
    if precision == "amp_compat":
        trained_in = dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
        return BASE ** -_rounded(exponent, trained_in)
    base = _rounded(torch.full((), BASE, dtype=torch.float64, device=device), dtype)
    power = _rounded(base ** _rounded(exponent, dtype), dtype)
    return _rounded(1.0 / power, dtype)


def _rounded(x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """x rounded to dtype, in float64 again."""
    if dtype is None or dtype == torch.float64:
        return x
    # By way of float32, in which PyTorch evaluates low-precision functions, so that ties fall as in the original.
    return x.float().to(dtype).double()
