"""Measuring and using a text model."""
