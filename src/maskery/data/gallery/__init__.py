"""A folder of pictures and the index of their features."""
