"""Pictures: opened safely, augmented by given random numbers, turned into tensors."""
