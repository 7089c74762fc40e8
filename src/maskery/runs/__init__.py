"""Whole runs: one folder a kind, each with its config, prepare, run and evaluate."""
