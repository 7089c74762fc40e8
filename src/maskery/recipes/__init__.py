"""Presets: Python functions that wire whole runs."""
