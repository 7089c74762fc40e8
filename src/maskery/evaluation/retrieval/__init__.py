"""Retrieval: figures, re-ranking and search."""
