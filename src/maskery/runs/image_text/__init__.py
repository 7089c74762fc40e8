"""Parts that both kinds of image-text run use."""
