"""PMI masking (Levine et al., "PMI-Masking", ICLR 2021): phrases are masked as one.

    maskery train text notes.txt --policy examples/plugins/pmi_policy.py:policy

`policy` counts the text file that $PMI_TEXT names: neighbouring words that stand together far
oftener than by chance (pointwise mutual information) are a phrase. In Python, or with phrases of
your own (`PMIPolicy(tokenizer(phrases, add_special_tokens=False)["input_ids"])`):

    Masker.of(tokenizer, policy=PMIPolicy.of(tokenizer, text, most=500), rate=0.15)
"""

import math
import os
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from maskery.masking.policies import Selection, words_of


class PMIPolicy:
    """Masks each phrase, a sequence of token ids, or word outside phrases, by one draw."""

    def __init__(self, phrases):
        self.phrases = {tuple(phrase) for phrase in phrases}
        self.lengths = sorted({len(phrase) for phrase in self.phrases}, reverse=True)

    @classmethod
    def of(cls, tokenizer, text, most=500, at_least=5):
        """Take the pairs of words that are e times as frequent in a text as by chance, or more."""
        lines = [re.findall(r"\w+", line) for line in text.splitlines()]
        words = Counter(word for line in lines for word in line)
        pairs = Counter(pair for line in lines for pair in pairwise(line))
        total = sum(words.values())
        pmi = {
            (a, b): math.log(count * total / (words[a] * words[b]))
            for (a, b), count in pairs.items()
            if count >= at_least
        }
        best = sorted((pair for pair in pmi if pmi[pair] >= 1), key=lambda pair: -pmi[pair])[:most]
        texts = [" ".join(pair) for pair in best]
        return cls(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])

    def select(self, batch, maskable, rate, draws):
        """Choose phrases and words, each by the draw of its first token."""
        first, word = words_of(batch)
        group, ids = first[word], batch.input_ids.tolist()  # the token that decides for each
        edges = {*first.tolist(), len(ids)}  # a phrase is made of whole words
        for start, end in pairwise(batch.boundaries.tolist()):
            place = start
            while place < end:
                ends = (place + n for n in self.lengths if place in edges and place + n in edges)
                fits = (e for e in ends if e <= end and tuple(ids[place:e]) in self.phrases)
                stop = next(fits, place)
                group[place:stop] = place
                place = max(stop, place + 1)
        uniforms = draws.uniforms("pmi phrases", batch)[group]
        return Selection(selected=(uniforms < rate) & maskable, anchors=group, values=uniforms)


def policy(tokenizer):
    """Make the policy of the file that $PMI_TEXT names; counts are kept low for small files."""
    return PMIPolicy.of(tokenizer, Path(os.environ["PMI_TEXT"]).read_text("utf-8"), at_least=3)


# A run that goes on must have the same text.
policy.run_identity = lambda: Path(os.environ["PMI_TEXT"]).read_bytes()
