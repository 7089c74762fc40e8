"""Text runs."""
