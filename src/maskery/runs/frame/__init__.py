"""The run folder and what every kind of run does around its training."""
