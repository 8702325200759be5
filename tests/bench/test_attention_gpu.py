"""The attention cases for GPUs, at toy sizes on a CPU: every path but the kernels, so that nothing is found out on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from jepa_kernels import reference
from jepa_kernels.bench import attention_exact, attention_peers, graphs, runner, suite
from jepa_kernels.bench.cases import Case, Provider, Setting, attention_gpu
from jepa_kernels.bench.cases.attention_gpu import Line
from jepa_kernels.bench.cases.masked_attention import Shape, run, with_arguments
from jepa_kernels.ops import cuda_paths

from .test_cases import CPU, SETTING
from .test_work_cases import visible

LINES = attention_gpu.lines()


def reduced(line: Line) -> Line:
    """The same kind of workload with few heads and tokens: frames of 3, grids of 12, a third of the lengths' variety."""
    shape = line.shape
    tokens = 3 * shape.causal_frames if shape.causal_frames else 12 if shape.tokens else 0
    smaller = replace(
        shape,
        batch=2,
        heads=2,
        tokens=tokens,
        grid=(2, 3, 3) if shape.grid else None,
        lengths=tuple(1 + n % 7 for n in shape.lengths[:3]),
        key_lengths=tuple(1 + n % 11 for n in shape.key_lengths[:2]),
    )
    return replace(line, shape=smaller)


CASES = [case for line in LINES for case in attention_gpu.line_cases(reduced(line), compiled=False)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_form_that_a_cpu_runs_is_right(case: Case) -> None:
    inputs = case.make_inputs(SETTING)
    wanted, low_precision = case.reference(inputs), case.low_precision(inputs)
    assert all(x.dtype == torch.float64 for x in wanted)
    for exact, low in zip(wanted, low_precision, strict=True):  # whose own error sets the limit: it must be one of rounding
        assert (low.double() - exact).norm() < 0.02 * exact.norm()
    checked = set()
    for provider in case.providers(CPU):
        if provider.supports(inputs) is None:
            prepared = runner.prepare(case, provider, inputs, wanted, low_precision, lambda: None)
            assert prepared.check.passed, (provider.name, prepared.check.message)
            assert prepared.check.repeatable
            checked.add(provider.name)
    assert {case.peer, "jk-reference"} <= checked


def test_cases_cover_the_head_dims_and_lengths_of_the_models() -> None:
    shapes = [line.shape for line in LINES]
    assert {s.head_dim for s in shapes} == {24, 32, 64, 80, 88, 96, 104, 128}
    assert {70, 138, 196, 258, 516, 1568, 2048, 4608, 18432} <= {s.tokens for s in shapes}
    for shape in shapes:
        tokens = sum(shape.lengths) or shape.batch * shape.tokens
        assert 0.75 * attention_gpu.TOKENS <= tokens <= 1.15 * attention_gpu.TOKENS, shape
        if shape.grid:
            frames, rows, columns = shape.grid
            assert frames * rows * columns >= shape.tokens
    names = {case.name for case in attention_gpu.cases()}
    assert {"train-dense-d64-n18432-bwd", "train-cached-d64-n516-fwd"} <= names and "train-cached-d64-n516-bwd" not in names


@pytest.fixture
def of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of compute capability 9.0, which has a second CUDA kernel."""
    monkeypatch.setattr(cuda_paths, "other_path", lambda _operator, device: "warpgroup" if device.type == "cuda" else None)


@pytest.mark.usefixtures("of_a_gpu")
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_providers_of_a_gpu_can_be_named_without_one(line: Line) -> None:
    """Also the set-up of peers that need no GPU by themselves, and which of them hold all scores."""
    for case in attention_gpu.line_cases(line):
        providers = {p.name: p for p in case.providers(torch.device("cuda"))}
        held_to = {n.rpartition("-")[2] for n in providers if n.startswith("torch-") and not n.endswith("-graph")}
        assert {"flash", "efficient", "cudnn"} <= held_to and case.peer in providers
        forward = case.id.endswith("fwd-bf16")
        assert ("jk-cuda" in providers) == ("jk-cuda-warpgroup" in providers) == forward  # its gradients are Triton's
        assert ("jk-triton-graph" in providers) == line.graph
        assert ("jk-cuda-warpgroup-graph" in providers) == (line.graph and forward)
        bounded = [p for n, p in providers.items() if n == "jk-reference" or n.endswith("-math")]
        reasons = {str(p.supports(None)) for p in bounded}
        assert all(("GiB of scores" in reason) == (line.shape.tokens == 18432) for reason in reasons), reasons


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_of_unequal_lengths_sees_what_ragged_shows() -> None:
    shape = Shape(batch=3, heads=2, head_dim=16, tokens=0, lengths=(3, 5, 4))
    (case, _) = attention_gpu.line_cases(Line("toy", shape, "torch-sdpa-padded"), compiled=False)
    inputs = replace(case.make_inputs(SETTING))
    inputs = replace(inputs, qkv=inputs.qkv.float())
    flex = next(p for p in case.providers(CPU) if p.name == "torch-flex")
    (found,) = flex.run(flex.setup(inputs))
    wanted = reference.masked_attention(inputs.qkv, **with_arguments(inputs).extra)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_varlen_is_called_with_the_bounds_of_the_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the signature of torch 2.10 and later computes what PyTorch's would."""

    def stand_in(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int) -> torch.Tensor:
        assert cu_q is cu_k and cu_q.dtype == torch.int32 and max_q == max_k == 5
        bounds = zip(cu_q[:-1], cu_q[1:], strict=True)
        parts = [reference.masked_attention(*(x[a:b].transpose(0, 1)[None] for x in (q, k, v))) for a, b in bounds]
        return torch.cat([part[0].transpose(0, 1) for part in parts])

    monkeypatch.setattr(attention_peers, "varlen_attention", lambda: stand_in)
    shape = Shape(batch=2, heads=2, head_dim=16, tokens=0, lengths=(3, 5))
    for case in attention_gpu.line_cases(Line("toy", shape, "torch-sdpa-padded"), compiled=False):
        inputs = case.make_inputs(SETTING)
        varlen = next(p for p in case.providers(CPU) if p.name == "torch-varlen")
        assert "kernels for GPUs alone" in str(varlen.supports(inputs))
        prepared = runner.prepare(case, varlen, inputs, case.reference(inputs), case.low_precision(inputs), lambda: None)
        assert prepared.check.passed, prepared.check.message
    monkeypatch.setattr(attention_peers, "varlen_attention", lambda: None)
    assert "has no torch.nn.attention.varlen" in str(attention_peers.varlen_runs(torch.device("cuda")))


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_work_counts_what_the_mask_shows(line: Line) -> None:
    for case in attention_gpu.line_cases(reduced(line)):
        inputs = case.make_inputs(SETTING)
        shape, found = inputs.shape, case.work(inputs)
        queries = shape.batch * shape.queries if not shape.lengths else sum(shape.lengths)
        pairs = sum(shape.key_lengths) * shape.tokens if shape.key_lengths else visible(replace(shape, batch=shape.batch))
        if shape.new_frames:
            pairs = shape.batch * shape.queries * shape.tokens  # the newest frame sees every key
        factor = 4 if shape.forward else 10
        assert found.flops == factor * pairs * shape.heads * shape.head_dim and found.tokens == queries
        size = 2 * shape.heads * shape.head_dim
        keys = sum(shape.lengths) or shape.batch * shape.tokens
        seen = sum(shape.key_lengths) or keys
        rows = 4 * shape.heads * queries  # log-sum-exp
        expected = 2 * queries * size + 2 * seen * size + rows if shape.forward else 0
        expected += 4 * queries * size + 2 * seen * size + 2 * keys * size + rows if shape.backward else 0
        assert found.bytes == expected


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_exact_result_does_not_depend_on_how_many_heads_are_done_at_once(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is the reference's, with autograd's gradient."""
    *_, case = attention_gpu.line_cases(reduced(line))
    inputs = case.make_inputs(replace(SETTING, seed=3))
    at_once = case.reference(inputs)
    monkeypatch.setattr(attention_exact, "MAX_SCORES", 1)
    one_by_one = case.reference(inputs)
    double = with_arguments(replace(inputs, qkv=inputs.qkv.detach().double().requires_grad_(inputs.shape.backward)))

    def attend(x: Any) -> torch.Tensor:
        return reference.masked_attention(*(x.split() if x.shape.new_frames else (x.qkv,)), **x.extra)

    for a, b, c in zip(at_once, one_by_one, run(attend, double), strict=True):
        assert a.shape == b.shape == c.shape
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)


class Stream:
    def wait_stream(self, _other: Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Recording:
    """A stand-in for torch.cuda.graph: calls inside are counted, and replays write the output again."""

    replays = 0

    def replay(self) -> None:
        Recording.replays += 1


@pytest.fixture
def pretended_graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []

    @contextmanager
    def noted(what: str) -> Iterator[None]:
        told.append(f"{what} begins")
        yield
        told.append(f"{what} ends")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: noted("side"))
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph, stream: noted("capture"))
    return told


def test_graph_is_set_up_on_its_stream_and_replayed(pretended_graphs: list[str]) -> None:
    def setup(x: int) -> int:
        pretended_graphs.append("setup")
        return x + 1

    def call(x: int) -> torch.Tensor:
        pretended_graphs.append("call")
        return torch.tensor(x)

    graphed = graphs.replayed(Provider("own", call, setup, outputs=lambda state, out: [out * state]), torch.device("cuda"))
    assert graphed.name == "own-graph" and graphed.supports(1) is None
    state = graphed.setup(1)
    calls = ["call"] * graphs.WARM_CALLS
    assert pretended_graphs == ["side begins", "setup", *calls, "side ends", "capture begins", "call", "capture ends"]
    before = Recording.replays
    assert graphed.outputs(state, graphed.run(state)) == [torch.tensor(4)]
    assert Recording.replays == before + 1 and pretended_graphs.count("call") == graphs.WARM_CALLS + 1
    assert graphs.replayed(graphed, CPU).supports(1) == "CUDA graphs need a GPU"


@pytest.mark.usefixtures("of_a_gpu")
def test_suite_of_a_gpu_has_these_cases_first_and_no_other_attention() -> None:
    chosen = suite.load_suite(suite._SUITES / "gpu.toml")
    ids = [case.id for case in chosen.chosen()]
    attention = [name for name in ids if name.startswith("masked_attention/")]
    assert attention == [case.id for case in attention_gpu.cases()] == ids[: len(attention)]
    assert {name.partition("/")[0] for name in ids} >= {"patch_embed", "train_step", "ema_update", "adamw_ema"}
    runner.check_provider_names(chosen.chosen(), torch.device("cuda"), chosen.providers)
    assert isinstance(SETTING, Setting)
