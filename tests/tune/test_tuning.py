"""Tuning without a GPU: a pretended compiler and timer, real tables, and the command line around them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from jepa_kernels import backends, cli
from jepa_kernels.kernels import tuned_tiles
from jepa_kernels.kernels.masked_attention_tiles import Tile
from jepa_kernels.tune import candidates, command, compiling, search, timing
from jepa_kernels.tune.candidates import Entry
from jepa_kernels.tune.errors import TuneError

ENTRY = Entry("forward", 64, "long")
USUAL = ENTRY.default()
FAST, SLOW, WRONG = Tile(128, 128, 8, 2), Tile(64, 32, 4, 2), Tile(64, 64, 4, 3)


class Pretended:
    """A compiler that rejects what it is told to, and a timer with its seconds for each tile; both keep what they were asked."""

    def __init__(self, seconds: dict[Tile, float], noise: float = 0.001, **rejects: dict[Tile, str]) -> None:
        self.seconds, self.noise = seconds, noise
        self.rejects, self.rejects_whole = rejects.get("dense", {}), rejects.get("whole", {})
        self.asked: list[tuple[str, str]] = []
        self.clock = 0.0
        self.breaks_after: float | None = None
        self._random = random.Random(0)

    def now(self) -> float:
        return self.clock

    def start(self, entry: Entry, _tiles: Sequence[Tile]) -> None:
        self.asked.append(("start", entry.name))

    def rejected(self, entry: Entry, tiles: Sequence[Tile]) -> dict[Tile, str]:
        self.asked.append(("compile", entry.name))
        return {tile: why for tile, why in self.rejects.items() if tile in tiles}

    def rejected_whole(self, entry: Entry, tiles: Sequence[Tile]) -> dict[Tile, str]:
        self.asked.append(("whole", " ".join(str(tile.block_n) for tile in tiles)))
        return {tile: why for tile, why in self.rejects_whole.items() if tile in tiles}

    def measure(self, entry: Entry, tiles: Sequence[Tile], rounds: str, seed: int) -> list[Any]:
        self.asked.append((rounds, entry.name))
        self.clock += 10.0
        found: list[Any] = []
        for tile in tiles:
            seconds = self.seconds.get(tile, 1e-3)
            values = {i: seconds * (1 + self._random.gauss(0, self.noise)) for i in range(timing.ROUNDS[rounds])}
            found.append("wrong result" if tile == WRONG else values)
        return found

    def works(self) -> bool:
        return self.breaks_after is None or self.clock < self.breaks_after

    def tune(self, tiles: Sequence[Tile] = (FAST, SLOW)) -> search.Found:
        return search.tune(ENTRY, tiles, self.rejected(ENTRY, tiles), self, self)


def test_faster_tile_wins_with_its_times() -> None:
    found = Pretended({FAST: 0.8e-3, SLOW: 2e-3}).tune()
    assert found.winner == FAST and found.default == USUAL and found.gain is not None
    assert found.gain.value == pytest.approx(1.25, rel=0.01) and found.winner_s == pytest.approx(0.8e-3, rel=0.01)
    assert found.noise is not None and found.noise < 0.01


@pytest.mark.parametrize(("gain", "noise", "wins"), [(1.005, 1e-4, False), (1.05, 1e-4, True), (1.05, 0.3, False)])
def test_gain_must_be_worth_an_entry_and_above_the_noise(gain: float, noise: float, wins: bool) -> None:
    """A gain of half a percent is none; five percent are one, but not where the default differs from itself by more."""
    assert (Pretended({FAST: 1e-3 / gain}, noise).tune().winner is not None) == wins


@pytest.mark.parametrize(("second", "winner"), [(1.06, None), (1.02, FAST)])
def test_gain_below_what_the_default_differs_from_itself_is_none(
    second: float, winner: Tile | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However narrow the intervals: the default's second place in the same rounds is slower than its first."""
    pretended = Pretended({})

    def measure(_entry: Entry, tiles: Sequence[Tile], rounds: str, _seed: int) -> list[Any]:
        factors = {"screen": (1.0, 0.95), "final": (1.0, second, 0.95)}[rounds]
        return [{i: 1e-3 * factor * (1 + 1e-5 * (i % 3)) for i in range(20)} for factor in factors]

    monkeypatch.setattr(pretended, "measure", measure)
    assert pretended.tune([FAST]).winner == winner


def test_tile_that_does_not_compile_fit_or_agree_is_no_candidate() -> None:
    """However fast. The one that fails with every mask is told, and the next fastest is taken."""
    tiles = [FAST, SLOW, WRONG, Tile(64, 128, 4, 2)]
    seconds = {FAST: 0.1e-3, SLOW: 0.2e-3, WRONG: 0.01e-3, tiles[3]: 0.5e-3}
    pretended = Pretended(seconds, dense={FAST: "spills"}, whole={SLOW: "shared memory"})
    found = pretended.tune(tiles)
    assert found.winner == tiles[3]
    assert found.rejected == {FAST: "spills", SLOW: "shared memory", WRONG: "wrong result"}
    assert ("whole", "32 128") in pretended.asked  # of the finalists alone, the fastest first


def test_nothing_faster_keeps_the_default_without_a_second_measurement() -> None:
    pretended = Pretended({FAST: 2e-3, SLOW: 3e-3})
    found = pretended.tune()
    assert found.winner is None and ("final", ENTRY.name) not in pretended.asked
    assert found.default_s == pytest.approx(1e-3, rel=0.1)


def test_default_that_fails_is_told_and_ends_nothing() -> None:
    pretended = Pretended({})
    pretended.measure = lambda *_arguments: ["no kernel image", {0: 1.0}, {0: 1.0}]  # type: ignore[method-assign]
    found = pretended.tune()
    assert found.winner is None and found.rejected[USUAL] == "no kernel image"


def test_budget_ends_between_entries_and_the_next_compiles_while_one_is_timed() -> None:
    pretended, saved = Pretended({SLOW: 2e-3}), []
    entries = candidates.entries()[:5]
    left = search.search(entries, lambda _e: [SLOW], pretended, pretended, lambda e, _f: saved.append(e), 35.0, pretended.now)
    assert saved == entries[:3] and left == entries[3:]  # a fourth of ten seconds would end at 40
    order = [step for step in pretended.asked if step[1] in (entries[0].name, entries[1].name)]
    assert order.index(("start", entries[1].name)) < order.index(("screen", entries[0].name))
    assert search.search(entries, lambda _e: [SLOW], pretended, pretended, lambda e, _f: None, -1.0, pretended.now) == entries


def test_entry_that_breaks_the_device_ends_the_search_and_is_not_tried_again() -> None:
    pretended, saved, said = Pretended({SLOW: 2e-3}), [], []
    pretended.breaks_after = 15.0
    entries = candidates.entries()[:4]
    parts = lambda _e: [SLOW], pretended, pretended, lambda e, _f: saved.append(e)
    assert search.search(entries, *parts, 1e3, pretended.now, said.append) == entries[2:]
    assert saved == entries[:2] and "broke the device" in said[-1]


def test_order_is_by_importance() -> None:
    names = [entry.name for entry in candidates.entries()]
    assert names[:6] == [f"forward/{d}-{rows}" for d in (64, 32, 80) for rows in ("long", "short")]
    assert len(set(names)) == len(names) == len(tuned_tiles.KERNELS) * len(tuned_tiles.HEAD_DIMS) * len(tuned_tiles.ROWS)
    assert names.index("key_gradient/80-short") < names.index("forward/128-long")
    for entry in candidates.entries():
        assert tuned_tiles.key(entry.head_dim, entry.tokens) == entry.key
        tried = candidates.tiles(entry)
        assert len(tried) == len(set(tried)) and 8 <= len(tried) <= 24 and entry.default() not in tried


IDENTITY = {"gpu": "Pretended", "torch": "2.11", "triton": "3.6", "commit": {"id": "0"}}


def test_table_keeps_what_is_shipped_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "tuned" / "sm_90.json"
    table = command.Table(path, "sm_90", IDENTITY)
    pretended = Pretended({FAST: 0.5e-3})
    table.save(ENTRY, pretended.tune())
    other = Entry("key_gradient", 80, "short")
    table.save(other, search.Found(None, other.default(), None, None, None, float("inf"), 3, {SLOW: "why"}))
    document = json.loads(path.read_text())
    assert document["automatic"] == backends.tuned_table("sm_90").get("automatic", {})
    assert document["masked_attention"] == {
        "forward": {"64-long": {"block_m": 128, "block_n": 128, "num_warps": 8, "num_stages": 2}},
        "key_gradient": {},
    }
    told = document["tuning"]["masked_attention"]
    assert told["of"] == IDENTITY and set(told["entries"]) == {"forward/64-long", "key_gradient/80-short"}
    assert told["entries"]["forward/64-long"]["best_s"] < told["entries"]["forward/64-long"]["default_s"]
    again = command.Table(path, "sm_90", IDENTITY)
    assert again.has(ENTRY) and again.has(other) and not again.has(Entry("forward", 32, "long"))
    with pytest.raises(TuneError, match="was tuned with"):
        command.Table(path, "sm_90", {**IDENTITY, "triton": "3.9"})
    path.write_text("{}")
    with pytest.raises(TuneError, match=r"sm_90.json is no table that tune wrote"):
        command.Table(path, "sm_90", IDENTITY)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """The command on an H200 that is not there."""
    pretended = Pretended({FAST: 0.5e-3})

    class Pool(Pretended):
        def __enter__(self) -> Pretended:
            return pretended

        def __exit__(self, *_error: object) -> None:
            pass

    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(command.hardware, "architecture", lambda _index: "sm_90")
    monkeypatch.setattr(command, "identity", lambda: IDENTITY)
    monkeypatch.setattr(compiling, "Compiler", lambda _architecture: Pool({}))
    monkeypatch.setattr(timing, "OnDevice", lambda: pretended)
    return pretended


def test_command_writes_a_table_that_launches_read(
    pretended_gpu: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sm_90.json"
    assert cli.main(["tune", "masked_attention", "--arch", "sm_90", "--output", str(path)]) == 0
    assert "30 entries tuned, 0 left" in capsys.readouterr().out
    monkeypatch.setattr(backends, "tuned_table", lambda _architecture: json.loads(path.read_text()))
    tuned_tiles.table.cache_clear()
    found = tuned_tiles.table("sm_90")
    tuned_tiles.table.cache_clear()
    assert found["forward", "64-long"] == FAST
    asked = len(pretended_gpu.asked)
    assert cli.main(["tune", "masked_attention", "--output", str(path)]) == 0 and len(pretended_gpu.asked) == asked


def test_command_that_ran_out_of_time_says_so(pretended_gpu: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.time, "monotonic", pretended_gpu.now)
    arguments = ["tune", "masked_attention", "--budget", "45s", "--output", str(tmp_path / "t.json")]
    assert cli.main(arguments) == command.LEFT
    first = len(json.loads((tmp_path / "t.json").read_text())["tuning"]["masked_attention"]["entries"])
    assert cli.main(arguments) == command.LEFT
    assert len(json.loads((tmp_path / "t.json").read_text())["tuning"]["masked_attention"]["entries"]) == 2 * first > 0


def test_command_refuses_another_architecture_and_a_machine_without_gpu(
    pretended_gpu: Pretended, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", "masked_attention", "--arch", "sm_80"]) == 2
    assert "not this GPU's architecture, sm_90" in capsys.readouterr().err
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    assert cli.main(["tune", "masked_attention"]) == 5 and "needs an NVIDIA GPU" in capsys.readouterr().err
