"""Benchmarks: cases, timing, ceilings, energy, storage and the report.

Nothing else in the package imports from here. Reports and tables need the packages of the extra ``bench``.
"""
