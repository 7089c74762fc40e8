"""Maskery: masked language modelling for text and image-text."""

__version__ = "0.1.0"
