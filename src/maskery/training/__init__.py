"""The training loop and what it needs; knows only the `Task` protocol."""
