"""Pictures of known persons with captions: the datasets of text-based person search."""
