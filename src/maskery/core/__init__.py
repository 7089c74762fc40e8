"""What every other package stands on: errors, randomness, batches, the task contract."""
