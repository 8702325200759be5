"""A model of energy, not a measurement: bytes times picojoules per byte plus FLOPs times picojoules per FLOP.

It shows what moving data costs beside computing, also where no counter exists. The constants are published figures of
other chips and other scopes; read a model for its ratios and its bounds, never as the joules of this machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Constant:
    """Picojoules of one byte or one FLOP: a range, with what it covers and where it is from."""

    low_pj: float
    high_pj: float
    scope: str
    source: str


HOROWITZ = "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, figure 1.1.9"
OCONNOR = "M. O'Connor et al., Fine-grained DRAM: energy-efficient DRAM for extreme bandwidth systems, MICRO 2017"

# A multiply and an add make two FLOPs: 32-bit (0.9 + 3.7) / 2, 16-bit (0.4 + 1.1) / 2.
CPU_BYTE = Constant(1300 / 8, 2600 / 8, "DRAM access, 1.3 to 2.6 nJ per 64 bits, 45 nm", HOROWITZ)
CPU_FLOP = {
    "fp32": Constant(2.3, 2.3, "32-bit floating multiply and add, arithmetic alone, 45 nm", HOROWITZ),
    "bf16": Constant(0.75, 0.75, "16-bit floating multiply and add, arithmetic alone, 45 nm", HOROWITZ),
}
GPU_BYTE = Constant(8 * 3.9, 8 * 3.9, "HBM2 device, 3.9 pJ per bit, without the path to the L2 cache", OCONNOR)
GPU_FLOP = Constant(
    0.89,
    0.89,
    "whole board at its 700 W limit over 790 TFLOP/s of bf16 matrix products, H200: static power included",
    "H200 datasheet power and published matrix rates on random data",
)


@dataclass(frozen=True)
class ModelledEnergy:
    """Joules of one call by the model; `measured` is always false."""

    joules_low: float
    joules_high: float
    bytes_joules: tuple[float, float]
    flops_joules: tuple[float, float]
    byte_constant: Constant
    flop_constant: Constant
    measured: bool = False
    label: str = "model: bytes x pJ/byte + FLOPs x pJ/FLOP, not measured"

    @property
    def bytes_share(self) -> float:
        """Share of data movement in the middle of the range."""
        moved, total = sum(self.bytes_joules), self.joules_low + self.joules_high
        return moved / total if total else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"bytes_share": self.bytes_share}


def modelled(flops: float, moved_bytes: float, dtype: str, device_type: str) -> ModelledEnergy:
    """Energy of a call by its useful FLOPs and least bytes: a lower bound of the work, by each constant's scope."""
    byte = GPU_BYTE if device_type == "cuda" else CPU_BYTE
    flop = GPU_FLOP if device_type == "cuda" else CPU_FLOP["bf16" if dtype == "bf16" else "fp32"]
    moved = (moved_bytes * byte.low_pj * 1e-12, moved_bytes * byte.high_pj * 1e-12)
    computed = (flops * flop.low_pj * 1e-12, flops * flop.high_pj * 1e-12)
    return ModelledEnergy(moved[0] + computed[0], moved[1] + computed[1], moved, computed, byte, flop)
