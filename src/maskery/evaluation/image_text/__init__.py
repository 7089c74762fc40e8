"""Measuring and using an image-text model."""
