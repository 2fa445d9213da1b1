"""Benchmarks: ``python -m bench`` times fastdl beside torch, one process each, and prints a table."""
