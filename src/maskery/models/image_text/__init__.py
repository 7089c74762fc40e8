"""The image-text model: a vision encoder, a text-and-fusion encoder and their heads."""
