"""Hugging Face adapters and the models of Maskery."""
