"""Maskery beside what people use now: the same corpus, model, dropout and number of tokens."""
