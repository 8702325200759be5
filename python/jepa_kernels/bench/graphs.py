"""A provider's call as a CUDA graph: device time of small calls, whose launches take longer than their kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backends import BackendError
from .cases.base import Inputs, Provider

WARM_CALLS = 3  # outside the graph: allocations, tables, compilation


@dataclass(frozen=True)
class Captured:
    """A captured call: what it was set up with, and its outputs, which every replay writes again."""

    graph: torch.cuda.CUDAGraph
    state: Any
    result: Any


def replayed(base: Provider, device: torch.device) -> Provider:
    """The provider as `NAME-graph`: one call is captured in the set-up, and its replay is what is timed and checked."""
    why = None if device.type == "cuda" else "CUDA graphs need a GPU"

    def outputs(captured: Captured, result: Any) -> list[Tensor]:
        return base.outputs(captured.state, result)

    return replace(
        base,
        name=f"{base.name}-graph",
        setup=partial(_capture, base),
        run=_replay,
        supports=lambda inputs: why or base.supports(inputs),
        outputs=outputs,
        about=f"{base.about}; replay of a CUDA graph".removeprefix("; "),
    )


def _capture(base: Provider, inputs: Inputs) -> Captured:
    # Set up on the stream of the capture: a gradient's kernels run on the stream of its forward.
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        state = base.setup(inputs)
        for _ in range(WARM_CALLS):
            base.run(state)
    side.synchronize()
    try:
        with torch.cuda.graph(graph, stream=side):
            result = base.run(state)
    except RuntimeError as error:
        raise BackendError(f"the call cannot be captured in a CUDA graph: {error}") from error
    return Captured(graph, state, result)


def _replay(captured: Captured) -> Any:
    captured.graph.replay()
    return captured.result
