"""Masking policies, corruption and rate schedules: pure functions over flat ids."""
