"""Probing an encoder: how good its vectors are for a task of the user's own."""
