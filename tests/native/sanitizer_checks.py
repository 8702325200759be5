"""Every operator of a native CPU module on small odd shapes, at every instruction level: sanitizer_checks.py MODULE.

test_sanitizers.py runs this as a program under the sanitizers' library. A wrong address stops the process there and
then; the comparison with the reference shows that the kernels did run.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys

import torch

import jepa_kernels as jk
from jepa_kernels import _native
from jepa_kernels.ops import linear as products

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16")


def load(path: str) -> None:
    """Puts the module at `path` in the place of the installed one."""
    spec = importlib.util.spec_from_file_location("jepa_kernels._cpu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["jepa_kernels._cpu"] = module
    assert _native.cpu() is module


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


def leaf(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def compare(function, inputs: list[torch.Tensor], tolerance: float) -> None:  # type: ignore[no-untyped-def]
    """The output and the gradients of the inputs, from the native kernels and from the reference."""
    results = []
    for backend in ("cpu", "reference"):
        with jk.backend(backend):
            out = function(*inputs)
            gradients = torch.autograd.grad(out.float().square().mean() * out.numel() ** 0.5, inputs)
        results.append((out, *gradients))
    for found, expected in zip(*results, strict=True):
        close(found, expected, tolerance)


def ema_update() -> None:
    for dtype, sizes in itertools.product(FLOATS, ((1,), (0, 7, 33), (40003, 17))):
        targets = [torch.randn(size) for size in sizes]
        online = [torch.randn(size).to(dtype) for size in sizes]
        expected = [target * 0.9 + source.float() * 0.1 for target, source in zip(targets, online, strict=True)]
        shadows = [torch.empty(size, dtype=torch.bfloat16) for size in sizes]
        with jk.backend("cpu"):
            jk.ema_update_(targets, online, 0.9, shadows=shadows)
        for found, wanted in zip(targets, expected, strict=True):
            close(found, wanted, 1e-5)
    half = [torch.zeros(size, dtype=torch.bfloat16) for size in (5, 129)]
    with jk.backend("cpu"):
        jk.ema_update_(half, [torch.ones_like(target) for target in half], 0.75, stochastic_rounding=True, seed=3)
    assert all(torch.equal(target.float(), torch.full(target.shape, 0.25)) for target in half)


def patch_embed() -> None:
    for dtype, patch in itertools.product(FLOATS, (3, 7)):
        weight, bias = leaf(5, 3, patch, patch, dtype=dtype), leaf(5, dtype=dtype)
        pixels = torch.randint(0, 256, (2, 3, 3 * patch, 5 * patch), dtype=torch.uint8)
        keep = torch.tensor([[0, 14, 7], [1, 2, 13]])
        scale = {"mean": torch.tensor([100.0, 110.0, 120.0]), "std": torch.tensor([50.0, 60.0, 70.0])}
        tolerance = 5 * TOLERANCE[dtype]
        compare(
            lambda w, b, x=pixels, k=keep, s=scale: jk.patch_embed(x, w, b, keep=k, **s), [weight, bias], tolerance
        )
        video = leaf(1, 1, 4, 2 * patch, patch, dtype=dtype)
        tubes = leaf(3, 1, 2, patch, patch, dtype=dtype)
        compare(lambda x, w: jk.patch_embed(x, w), [video, tubes], tolerance)


def masked_attention() -> None:
    for dtype, (queries, keys, dim) in itertools.product(FLOATS, ((1, 1, 24), (7, 65, 10), (67, 9, 80))):
        q, k, v = (leaf(2, 2, length, dim, dtype=dtype) for length in (queries, keys, keys))
        allowed = torch.rand(2, 1, queries, keys) < 0.7
        allowed[0, 0, 0] = False
        for mask in (None, allowed, jk.KeyPadding(torch.tensor([keys, keys // 2], dtype=torch.int32))):
            compare(lambda q, k, v, m=mask: jk.masked_attention(q, k, v, mask=m), [q, k, v], TOLERANCE[dtype])
    for dtype in FLOATS:
        packed = leaf(2, 39, 3, 2, 24, dtype=dtype)
        rope = jk.Rope3D.from_ids(torch.arange(39), grid=(3, 13))
        for mask in (None, jk.FrameCausal(13)):
            compare(lambda qkv, m=mask, r=rope: jk.masked_attention(qkv, mask=m, rope=r), [packed], TOLERANCE[dtype])
        ragged = leaf(42, 3, 2, 32, dtype=dtype)
        lengths = jk.Ragged(torch.tensor([0, 1, 36, 36, 42], dtype=torch.int32), 35)
        compare(lambda qkv, m=lengths: jk.masked_attention(qkv, mask=m), [ragged], TOLERANCE[dtype])


def jepa_loss() -> None:
    for dtype, kind in itertools.product(FLOATS, ("l1", "smooth_l1", "l2")):
        target, ids = torch.randn(2, 9, 37).to(dtype), torch.tensor([[0, 8, -1], [3, 3, 1]])
        pred = leaf(2, 3, 37, dtype=dtype)
        compare(lambda x, t=target, i=ids, k=kind: jk.jepa_loss(x, t, i, kind=k), [pred], TOLERANCE[dtype])


def sigreg() -> None:
    for dtype, (samples, dim, slices) in itertools.product(FLOATS, ((1, 1, 1), (67, 5, 33), (9, 33, 100))):
        directions = torch.nn.functional.normalize(torch.randn(dim, slices), dim=0)
        x = leaf(2, samples, dim, dtype=dtype)
        compare(lambda x, d=directions: jk.sigreg(x, directions=d, num_points=6), [x], 5 * TOLERANCE[dtype])
        cast = directions.to(dtype)  # the sums are what several processes add up
        compare(lambda x, d=cast: torch.ops.jepa_kernels.sigreg(x, d, 6, 3.0), [x], 5 * TOLERANCE[dtype])


def linear() -> None:
    """The products of linear layers, which AVX512_BF16 alone has: tiles and panels cut at several places."""
    if _native.cpu().active_isa() != "avx512_bf16":
        return
    for rows, inputs, hidden in ((16, 16, 32), (29, 48, 80), (61, 112, 3104)):
        first, second = torch.nn.Linear(inputs, hidden), torch.nn.Linear(hidden, inputs)
        x = leaf(rows, inputs, dtype=torch.float32)
        parameters = [x, *first.parameters(), *second.parameters()]
        results = []
        for run in (products.mlp, lambda t, a, b: b(torch.nn.functional.gelu(a(t)))):
            with torch.autocast("cpu", torch.bfloat16):
                assert products.why_not(x, first, second) is None
                y = run(x, first, second)
                with torch.no_grad():
                    close(products.mlp(x, first, second), y, 0.1)
            results.append((y, *torch.autograd.grad(y.float().square().mean(), parameters)))
        for found, expected in zip(*results, strict=True):
            close(found, expected, 0.1)


def adamw_ema() -> None:
    parameters = [torch.nn.Parameter(torch.randn(size)) for size in (7, 40003)]
    module = torch.nn.ParameterList(parameters)
    for dtype in (torch.bfloat16, torch.float16):
        target = jk.EMATarget(module, 0.75, shadow_dtype=dtype)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        before = [parameter.detach().clone() for parameter in parameters]
        with jk.backend("cpu"):
            jk.AdamWEMA(parameters, lr=0.125, weight_decay=0.0, target=target).step()
        for parameter, old, followed in zip(parameters, before, target.targets, strict=True):
            close(parameter.detach(), old - 0.125, 1e-5)
            close(followed, old - 0.125 / 4, 1e-5)


def main() -> None:
    load(sys.argv[1])
    torch.manual_seed(0)
    native = _native.cpu()
    for level in LEVELS[: LEVELS.index(native.detected_isa()) + 1]:
        native.limit_isa(level)
        assert native.active_isa() == level
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for check in (ema_update, patch_embed, masked_attention, jepa_loss, sigreg, linear, adamw_ema):
                check()
        print(f"checked {level}", flush=True)
    print("every check passed")


if __name__ == "__main__":
    main()
