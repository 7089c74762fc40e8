"""Image-caption pairs from the formats that people keep them in."""
