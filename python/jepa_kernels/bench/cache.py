"""State of the caches at the start of a timed call: told as cold only where enough bytes were touched to make it so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .errors import BenchInputError

STATES = ("warm", "cold")
TIMES_CACHE = 3  # a replacement policy that is not LRU keeps lines beyond one cache's worth of writes
MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class CacheState:
    """What is known of the caches: `touched_bytes` were written between two uses of the same inputs."""

    state: str
    touched_bytes: int
    last_level_cache_bytes: int | None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Eviction:
    """Writes a buffer of at least three times the last-level cache, and counts what it wrote."""

    def __init__(self, device: torch.device, cache_bytes: int | None, max_bytes: int = MAX_BYTES) -> None:
        wanted = TIMES_CACHE * (cache_bytes or 0)
        self.cache_bytes = cache_bytes
        self.touched_bytes = 0
        self._buffer = torch.empty(min(wanted, max_bytes), dtype=torch.uint8, device=device)
        self._value = 0

    def evict(self) -> None:
        self._value = (self._value + 1) % 256
        self._buffer.fill_(self._value)
        self.touched_bytes = self._buffer.numel()

    def state(self) -> CacheState:
        """Cold when the writes before each call reached three times the cache; else warm, and why."""
        return verified(self.touched_bytes, self.cache_bytes)


def verified(touched_bytes: int, cache_bytes: int | None) -> CacheState:
    """The state that so many bytes between two uses allow to claim."""
    if cache_bytes is None:
        return CacheState("warm", touched_bytes, None, "the size of the last-level cache is unknown")
    if touched_bytes < TIMES_CACHE * cache_bytes:
        reason = f"{touched_bytes} bytes touched between calls, cold needs {TIMES_CACHE * cache_bytes}"
        return CacheState("warm", touched_bytes, cache_bytes, reason)
    return CacheState("cold", touched_bytes, cache_bytes)


def eviction_for(wanted: str, device: torch.device, cache_bytes: int | None) -> Eviction | None:
    """An eviction where cold caches are wanted; raises `BenchInputError` for an unknown state."""
    if wanted not in STATES:
        raise BenchInputError(f"unknown cache state {wanted!r}; use one of {', '.join(STATES)}")
    return Eviction(device, cache_bytes) if wanted == "cold" else None
