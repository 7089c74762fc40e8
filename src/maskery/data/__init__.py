"""Corpora, tokens, pairs and batch plans; never masks."""
