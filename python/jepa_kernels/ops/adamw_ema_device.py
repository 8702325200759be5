"""AdamW with EMA on GPUs: tables of addresses on the device, and the launches of the Triton and CUDA kernels over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _native
from ._library import on_device
from .adamw_ema import Scalars, Tensors, like
from .plans import captured, upload

# Elements that one program walks: 61,000 programs for a billion parameters.
CHUNK = 16384
ROW = 9  # param, exp_avg, exp_avg_sq, step, target, param shadow, target shadow, element count, group


@dataclass(frozen=True)
class Launch:
    """The programs of one combination of element types. chunks: int32 (programs, 2): row of the table, number of the
    chunk in it."""

    chunks: Tensor
    grad_dtype: torch.dtype
    target: bool
    param_shadow: torch.dtype | None
    target_shadow: torch.dtype | None
    aligned: bool


class DevicePlan:
    """The tables of one set of tensors, kept from step to step; only the addresses of gradients are uploaded again,
    when they move.

    Adding up the norm takes one launch for each element type of the gradients, the step one for each combination of
    element types, and one program in between reduces what all tensors share. Nothing waits for the device, so a CUDA
    graph can capture it all.
    """

    def __init__(self, tensors: Tensors, backend: str) -> None:
        self._backend = backend
        self._build(tensors)

    def _build(self, tensors: Tensors) -> None:
        self._tensors = tensors._replace(grads=())  # kept, the first step's would stay beside those of every later one
        self._device = tensors.params[0].device
        self._grads: Sequence[Tensor] = like(tensors.params, tensors.grads)
        self._grad_dtypes = [grad.dtype for grad in self._grads]
        columns = [[tensor.data_ptr() for tensor in column] for column in (tensors.params, *tensors[2:8])]
        sizes = [param.numel() for param in tensors.params]
        rows = list(zip(*columns, sizes, tensors.groups, strict=True))
        self._table = torch.tensor(rows, dtype=torch.int64, device=self._device).view(-1, ROW)
        self._addresses = [grad.data_ptr() for grad in self._grads]
        self._grad_table = torch.tensor(self._addresses, dtype=torch.int64, device=self._device)
        self._captured = False  # whether a CUDA graph reads these tables
        self._coefficients = torch.empty(len(rows), 2, dtype=torch.float32, device=self._device)
        self._shared = torch.empty(3, dtype=torch.float32, device=self._device)
        self._launches = self._grouped(rows)
        programs = sum(launch.chunks.shape[0] for launch in self._launches)
        self._partials = torch.zeros(programs, dtype=torch.float64, device=self._device)

    def _grouped(self, rows: Sequence[tuple[int, ...]]) -> list[Launch]:
        groups: dict[tuple, list[tuple[int, int]]] = {}
        tensors = self._tensors
        for place, row in enumerate(rows):
            shadows = [
                None if shadow.numel() == 0 else shadow.dtype
                for shadow in (tensors.param_shadows[place], tensors.target_shadows[place])
            ]
            aligned = all(address % 16 == 0 for address in (*row[:3], *row[4:7], self._addresses[place]))
            key = (self._grad_dtypes[place], row[4] != 0, *shadows, aligned)
            groups.setdefault(key, []).extend((place, chunk) for chunk in range(-(-row[7] // CHUNK)))
        return [
            Launch(torch.tensor(chunks, dtype=torch.int32, device=self._device), *key)
            for key, chunks in groups.items()
            if chunks
        ]

    def set_grads(self, grads: Sequence[Tensor]) -> None:
        """Takes the gradients of the coming step. A CUDA graph needs them where they were.

        Raises:
            RuntimeError: gradients moved inside a graph capture.
        """
        grads = like(self._tensors.params, grads)
        addresses = [grad.data_ptr() for grad in grads]
        if addresses != self._addresses and self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "adamw_ema: gradients moved inside a CUDA graph capture; capture the backward pass with the step"
            )
        same_kinds = all(
            grad.dtype == dtype and (new % 16 == 0) == (address % 16 == 0)
            for grad, dtype, new, address in zip(grads, self._grad_dtypes, addresses, self._addresses, strict=True)
        )
        if not same_kinds:
            self._build(self._tensors._replace(grads=grads))
            return
        self._grads = grads
        if addresses != self._addresses:
            self._addresses = addresses
            if self._captured:  # replays read the addresses of their own gradients
                self._grad_table, self._captured = torch.empty_like(self._grad_table), False
            upload(addresses, self._grad_table)

    def sum_of_squares(self) -> Tensor:
        """Of the gradients, in float64, on the device."""
        with on_device(self._device):
            self._sum_squares()
        return self._partials.sum()

    def _sum_squares(self) -> None:
        first = 0
        for launch in self._launches:
            partials = self._partials[first : first + launch.chunks.shape[0]]
            first += launch.chunks.shape[0]
            if self._backend == "triton":
                from ..kernels import adamw_ema as kernel

                kernel.launch_sum_of_squares(
                    self._table,
                    self._grad_table,
                    launch.chunks,
                    partials,
                    grad_dtype=launch.grad_dtype,
                    aligned=launch.aligned,
                    chunk=CHUNK,
                )
            else:
                _native.cuda().adamw_ema_sum_of_squares(
                    _native.view(self._table),
                    _native.view(self._grad_table),
                    _native.view(launch.chunks),
                    _native.view(partials),
                    _native.DTYPE_CODES[launch.grad_dtype],
                    launch.aligned,
                    CHUNK,
                    self._stream(),
                )

    def update(self, scalars: Scalars) -> None:
        """The step itself."""
        with on_device(self._device):
            tables = (self._table, self._grad_table, self._launches, self._coefficients, self._shared, self._partials)
            self._captured |= captured(tables, self._device)
            if self._backend == "triton":
                self._update_triton(scalars)
            else:
                self._update_cuda(scalars)
        # Only addresses stay: gradients kept until the next step would lie beside those that its backward pass makes.
        self._grads = ()

    def _update_triton(self, scalars: Scalars) -> None:
        from ..kernels import adamw_ema as kernel

        kernel.launch_prepare(
            self._table,
            scalars.hyper,
            scalars.control,
            scalars.squares,
            scalars.status,
            self._coefficients,
            self._shared,
        )
        for launch in self._launches:
            kernel.launch_step(
                self._table,
                self._grad_table,
                launch.chunks,
                scalars.hyper,
                self._coefficients,
                self._shared,
                grad_dtype=launch.grad_dtype,
                target=launch.target,
                param_shadow=launch.param_shadow,
                target_shadow=launch.target_shadow,
                aligned=launch.aligned,
                chunk=CHUNK,
            )

    def _update_cuda(self, scalars: Scalars) -> None:
        native, view, stream = _native.cuda(), _native.view, self._stream()
        squares = view(scalars.squares) if scalars.squares.numel() else None
        native.adamw_ema_prepare(
            view(self._table),
            view(scalars.hyper),
            view(scalars.control),
            squares,
            view(scalars.status),
            view(self._coefficients),
            view(self._shared),
            stream,
        )
        for launch in self._launches:
            codes = [
                -1 if dtype is None else _native.DTYPE_CODES[dtype]
                for dtype in (launch.param_shadow, launch.target_shadow)
            ]
            native.adamw_ema_step(
                view(self._table),
                view(self._grad_table),
                view(launch.chunks),
                view(scalars.hyper),
                view(self._coefficients),
                view(self._shared),
                _native.DTYPE_CODES[launch.grad_dtype],
                launch.target,
                *codes,
                launch.aligned,
                CHUNK,
                stream,
            )

    def _stream(self) -> int:
        return torch.cuda.current_stream(self._device).cuda_stream
