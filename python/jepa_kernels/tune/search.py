"""The search: entry after entry within a time budget, each saved when it is finished; a winner must beat the noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from ..bench.statistics import Ratio, paired_ratio
from ..kernels.masked_attention_tiles import Tile
from .candidates import Entry
from .timing import Samples

LEAST_GAIN = 0.01  # below this a change is not worth an entry, whatever the noise
FINALISTS = 3  # of the candidates by time, those that are compiled for every mask and rotation
SLOWEST_SHARE = 1.25  # time for the longest entry so far, with this margin, must be left to begin another

Say = Callable[[str], object]


class Compiles(Protocol):
    def start(self, entry: Entry, tiles: Sequence[Tile]) -> None: ...
    def rejected(self, entry: Entry, tiles: Sequence[Tile]) -> dict[Tile, str]: ...
    def rejected_whole(self, entry: Entry, tiles: Sequence[Tile]) -> dict[Tile, str]: ...


class Measures(Protocol):
    def measure(self, entry: Entry, tiles: Sequence[Tile], rounds: str, seed: int) -> list[Samples | str]: ...
    def works(self) -> bool: ...


@dataclass(frozen=True)
class Found:
    """Of one entry: the tile that won, None for the default; seconds of both; the gain with its interval; the noise, which is how
    far the default is from itself in the same rounds; and what was tried."""

    winner: Tile | None
    default: Tile
    default_s: float | None
    winner_s: float | None
    gain: Ratio | None
    noise: float | None
    candidates: int
    rejected: dict[Tile, str]


def search(
    entries: Sequence[Entry],
    tiles: Callable[[Entry], Sequence[Tile]],
    compiler: Compiles,
    device: Measures,
    save: Callable[[Entry, Found], object],
    end: float,
    now: Callable[[], float],
    say: Say = lambda _line: None,
) -> list[Entry]:
    """Tune the entries in order until `end`, or until one of them breaks the device; the entries that are left.

    The next entry compiles while one is timed. An entry that broke the device keeps the default, and counts as finished: else the
    same command would end there for ever.
    """
    longest = 0.0
    for place, entry in enumerate(entries):
        begin = now()
        if begin + SLOWEST_SHARE * longest >= end:
            return list(entries[place:])
        compiler.start(entry, tiles(entry))
        following = entries[place + 1 : place + 2]
        rejected = compiler.rejected(entry, tiles(entry))
        for after in following:
            compiler.start(after, tiles(after))
        found = tune(entry, tiles(entry), rejected, compiler, device)
        save(entry, found)
        say(told(entry, found))
        longest = max(longest, now() - begin)
        if not device.works():
            say(f"{entry.name} broke the device: the same command goes on after it")
            return list(entries[place + 1 :])
    return []


def tune(
    entry: Entry, tiles: Sequence[Tile], rejected: dict[Tile, str], compiler: Compiles, device: Measures
) -> Found:
    """Screen what compiles, then measure the best anew, beside the default twice."""
    usual, rejected = entry.default(), dict(rejected)
    kept = [tile for tile in tiles if tile not in rejected]
    first, *others = device.measure(entry, [usual, *kept], "screen", 0)
    if isinstance(first, str):
        return Found(None, usual, None, None, None, None, len(tiles), {**rejected, usual: first})
    rejected |= {tile: samples for tile, samples in zip(kept, others, strict=True) if isinstance(samples, str)}
    times = {tile: median(s.values()) for tile, s in zip(kept, others, strict=True) if not isinstance(s, str)}
    usual_s = median(first.values())
    faster = [tile for tile in sorted(times, key=times.__getitem__) if times[tile] < usual_s]
    finalists = faster[:FINALISTS]
    rejected |= compiler.rejected_whole(entry, finalists)
    best = next((tile for tile in finalists if tile not in rejected), None)
    if best is None:
        return Found(None, usual, usual_s, None, None, None, len(tiles), rejected)
    again, once_more, final = device.measure(entry, [usual, usual, best], "final", 1)
    if isinstance(again, str) or isinstance(once_more, str) or isinstance(final, str):
        why = next(x for x in (final, again, once_more) if isinstance(x, str))
        return Found(None, usual, usual_s, None, None, None, len(tiles), {**rejected, best: why})
    gain, noise = paired_ratio(final, again, 0), _noise(paired_ratio(once_more, again, 0))
    won = gain is not None and gain.ci_low > 1 + max(noise, LEAST_GAIN)
    seconds = median(again.values()), median(final.values())
    return Found(best if won else None, usual, *seconds, gain, noise, len(tiles), rejected)


def _noise(itself: Ratio | None) -> float:
    """How far from one the interval of the default over itself reaches."""
    return float("inf") if itself is None else max(itself.ci_high - 1, 1 - itself.ci_low)


def told(entry: Entry, found: Found) -> str:
    """One line on an entry."""
    if found.gain is None or found.default_s is None:
        times = f"default {found.default_s * 1e3:.3f} ms" if found.default_s is not None else "the default failed"
        return f"{entry.name}: default kept; {times}, {found.candidates} candidates, {len(found.rejected)} rejected"
    share = f"{found.gain.value:.3f} x [{found.gain.ci_low:.3f}, {found.gain.ci_high:.3f}], noise {found.noise:.3f}"
    outcome = "default kept" if found.winner is None else " ".join(map(str, found.winner))
    return f"{entry.name}: {outcome}; {share}, {found.candidates} candidates, {len(found.rejected)} rejected"


def record(found: Found) -> dict[str, Any]:
    """An entry's outcome as JSON."""
    gain = found.gain
    return {
        "winner": None if found.winner is None else as_entry(found.winner),
        "default": as_entry(found.default),
        "default_s": found.default_s,
        "best_s": found.winner_s,
        "gain": None if gain is None else {"value": gain.value, "ci_low": gain.ci_low, "ci_high": gain.ci_high},
        "noise": found.noise,
        "candidates": found.candidates,
        "rejected": {" ".join(map(str, tile)): reason for tile, reason in found.rejected.items()},
    }


def as_entry(tile: Tile) -> dict[str, Any]:
    """A tile as the table holds it: without the fields that have their default."""
    usual = Tile._field_defaults
    return {name: value for name, value in tile._asdict().items() if name not in usual or value != usual[name]}
