"""Pieces for Hugging Face's Transformers: the collator, and a ready Trainer."""
