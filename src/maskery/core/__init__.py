"""Parts that every other package uses: errors, randomness, batches, the task contract."""
