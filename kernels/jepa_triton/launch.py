"""A kernel call as data: the launchers run it, and the ahead-of-time gate compiles the very same one without a GPU."""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from ._common import AotCase

DTYPE_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
MAX_STRIDE_UNIT = 8  # elements; 16 bytes of a 16-bit dtype, the widest load of one thread
ASSUMED_MULTIPROCESSORS = 132  # an H100's, where tensors are on no GPU: the compile gate and Triton's interpreter


@dataclass(frozen=True)
class Launch:
    """One kernel call. options are num_warps, num_stages and maxnreg; grid counts programs along one axis."""

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        if self.grid > 0:
            # Triton 3.10 turns contraction to fma off by default; the kernels are written for it.
            self.kernel[(self.grid,)](**self.arguments, **self.options, enable_fp_fusion=True)

    def aot_case(self) -> AotCase:
        """This call as the compile gate takes it. Pointers count as 16-byte aligned, as torch's allocations are."""
        signature, constants = {}, {}
        for parameter in self.kernel.params:
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                constants[parameter.name] = value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = "*" + DTYPE_NAMES[value.dtype]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else parameter.annotation_type or "i32"
        pointers = tuple(name for name, kind in signature.items() if kind.startswith("*"))
        return AotCase(
            self.kernel.__name__,
            self.kernel,
            signature,
            constants,
            self.options["num_warps"],
            self.options["num_stages"],
            pointers,
            max_registers=self.options.get("maxnreg"),
        )


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU that holds the tensors."""
    if device.type != "cuda":
        return ASSUMED_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def stride_unit(*tensors: torch.Tensor | None) -> int:
    """Largest power of two, at most 8, that divides every stride: kernels take strides in this unit.

    Triton learns the alignment of an integer argument only from divisibility by 16, which a head stride of 88
    or 24 lacks, and would then load two bytes at a time. Multiplying by a compile-time unit tells it. The unit
    takes four values at most, so new shapes do not mean new compilations.
    """
    unit = MAX_STRIDE_UNIT
    for tensor in tensors:
        if tensor is not None:
            for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
                while size > 1 and stride % unit:
                    unit //= 2
    return unit


def stride_arguments(name: str, tensor: torch.Tensor | None, axes: str, unit: int) -> dict[str, int]:
    """{name_stride_axis: stride in units}; 0 for an axis of one element and for an absent tensor."""
    if tensor is None:
        return {f"{name}_stride_{axis}": 0 for axis in axes}
    sizes_strides = zip(axes, tensor.shape, tensor.stride(), strict=False)
    return {f"{name}_stride_{axis}": stride // unit if size > 1 else 0 for axis, size, stride in sizes_strides}
