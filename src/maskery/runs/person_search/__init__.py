"""Person-search runs."""
