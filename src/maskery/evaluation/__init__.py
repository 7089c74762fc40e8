"""Measuring and using a trained model."""
