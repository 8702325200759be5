"""Energy of calls: meters (NVML, RAPL), windows between refreshes of a counter, results, and a separate model.

A value that cannot be measured is None with a reason, never 0. This is device energy, not wall-plug energy.
"""

from __future__ import annotations

from .errors import Unavailable
from .loads import Load, load_for
from .measure import EnergyOptions, Subject, measure
from .meters import Meters, find_period, open_meters, packages_or_none
from .model import modelled
from .result import EnergyReading, absent, reading, spans, with_ratios

__all__ = [
    "EnergyOptions",
    "EnergyReading",
    "Load",
    "Meters",
    "Subject",
    "Unavailable",
    "absent",
    "find_period",
    "load_for",
    "measure",
    "modelled",
    "open_meters",
    "packages_or_none",
    "reading",
    "spans",
    "with_ratios",
]
