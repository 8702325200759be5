"""Tests of the native modules and of their sources."""
