"""Drawn people: pictures and captions that are pure functions of a seed, for tests and demos."""
