"""Image-text runs on pairs of picture and caption."""
