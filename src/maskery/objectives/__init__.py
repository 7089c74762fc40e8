"""Training objectives: tensors in, named loss terms out."""
