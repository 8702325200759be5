"""Configurations of `jepa-kernels train`: `--config NAME` finds them as package data."""
