"""Triton device code and plain launchers, one file an operator. Importing this package does not import triton."""
