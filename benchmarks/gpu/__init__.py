"""Checks and figures of one GPU: `python benchmarks/gpu`."""
