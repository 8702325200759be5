"""Time the candidates of one entry on the GPU: in interleaved rounds, after a comparison with what the default computes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..bench.clocks import DeviceEventClock
from ..bench.timing import Timed, TimingOptions, interleave
from ..kernels import tuned_tiles
from ..kernels.masked_attention_tiles import Tile
from .candidates import CALL_TOKENS, DTYPE, HEADS, Entry

ROUNDS = {"screen": 12, "final": 40}
TOLERANCE = 1e-2  # of the default's result, as a share of its norm: two orders of the same sums differ by less in bfloat16
OUTPUTS = {"forward": ("out",), "query_gradient": ("dq",), "key_gradient": ("dk", "dv")}

Samples = dict[int, float]  # round -> seconds of a call


class OnDevice:
    """Runs candidates on the current GPU, on inputs that are kept for a shape."""

    def measure(self, entry: Entry, tiles: Sequence[Tile], rounds: str, seed: int) -> list[Samples | str]:
        """Seconds of each candidate by round, or why there are none. A tile may stand twice."""
        values = _inputs(entry.head_dim, entry.tokens)
        wanted = self._result(entry, entry.default(), values)
        timed: list[Timed | str] = []
        for tile in tiles:
            try:
                wrong = _difference(self._result(entry, tile, values), wanted)
                timed.append(Timed(entry.name, _call(entry, tile, values)) if wrong is None else wrong)
            except Exception as error:  # a candidate may fail in any way; the others are still timed
                timed.append(f"{type(error).__name__}: {error}"[:300])
        options = TimingOptions(rounds=ROUNDS[rounds], warmup_max_s=0.2)
        runs = [run for run in timed if isinstance(run, Timed)]
        interleave(runs, DeviceEventClock(), options, seed=seed)
        return [run if isinstance(run, str) else f"{run.error}" if run.error else run.samples for run in timed]

    def works(self) -> bool:
        """Whether the device still does, after candidates of which none was ever run."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def _result(self, entry: Entry, tile: Tile, values: dict[str, Tensor]) -> list[Tensor]:
        """What the kernel writes with a tile, over poison."""
        outputs = [values[name] for name in OUTPUTS[entry.kernel]]
        for output in outputs:
            output.fill_(float("nan"))
        _call(entry, tile, values)()
        torch.cuda.synchronize()
        return [output.clone() for output in outputs]


def _call(entry: Entry, tile: Tile, values: dict[str, Tensor]) -> Callable[[], Any]:
    """The launch of the entry's kernel alone, with a tile; what it reads of the kernel before it is there already."""
    from ..kernels.masked_attention import Extras, backward_launches, forward_launches

    v, extras = values, Extras(scale=entry.head_dim**-0.5)
    with tuned_tiles.forcing(entry.kernel, tile):
        if entry.kernel == "forward":
            launches = forward_launches(v["q"], v["k"], v["v"], v["out"], v["lse"], extras)
        else:
            given = [v[name] for name in ("dout", "q", "k", "v", "forward", "lse", "dq", "dk", "dv")]
            launches = backward_launches(*given, extras)
    if entry.kernel == "key_gradient":
        launches[0].run()  # the query gradient's kernel, which writes the row sums
    return launches[-1 if entry.kernel != "query_gradient" else 0].run


@functools.lru_cache(maxsize=1)
def _inputs(head_dim: int, tokens: int) -> dict[str, Tensor]:
    from ..kernels.masked_attention import forward

    batch = CALL_TOKENS // tokens

    def packed() -> list[Tensor]:
        whole = torch.randn(batch, tokens, 3, HEADS, head_dim, device="cuda", dtype=DTYPE)
        return list(whole.permute(2, 0, 3, 1, 4))

    q, k, v = packed()
    dq, dk, dv = packed()
    out, dout, saved = (torch.randn(batch, tokens, HEADS, head_dim, device="cuda", dtype=DTYPE).transpose(1, 2) for _ in range(3))
    lse = torch.empty(batch, HEADS, tokens, device="cuda")
    forward(q, k, v, saved, lse, scale=head_dim**-0.5)
    return {"q": q, "k": k, "v": v, "out": out, "dout": dout, "forward": saved, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


def _difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str | None:
    """Why a result is not the default's, or None. Not a number is never near."""
    for one, other in zip(found, wanted, strict=True):
        share = float((one.double() - other.double()).norm() / other.double().norm())
        if not share <= TOLERANCE:
            return f"wrong result: {share:.1e} of its norm from the default's"
    return None
