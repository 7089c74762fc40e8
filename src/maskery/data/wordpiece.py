"""Training a WordPiece tokenizer on a corpus, for models from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import BertTokenizer, PreTrainedTokenizerBase

from maskery.data.tokenise import Examples

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONTINUING = "##"
# Rarer characters are left to [UNK]; the trainer's own default.
MAX_ALPHABET = 1000


def train_wordpiece(
    corpus: Examples, vocab_size: int, *, progress: bool = True
) -> PreTrainedTokenizerBase:
    """Learn a lower-casing WordPiece vocabulary of at most `vocab_size` pieces.

    The result depends on the corpus alone, so a repeated run gets the same tokenizer. The trainer
    by itself does not see to that: it numbers continuing characters in the order of a randomly
    seeded hash table, and breaks ties between merges by those numbers. So the corpus is read once
    more, before, and the trainer is told the alphabet and its numbers.
    """
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in _texts(corpus, "reading the alphabet", progress):
        counts.update(text)
    # Each character may need two pieces: one that starts a word and one that continues it.
    limit = min(MAX_ALPHABET, (vocab_size - len(SPECIAL)) // 2)
    alphabet = alphabet_of(backend, counts, limit)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL + [CONTINUING + c for c in alphabet if may_continue(backend, c)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(corpus, "learning a vocabulary", progress), trainer)
    return BertTokenizer(vocab=backend.get_vocab(), model_max_length=512)


def alphabet_of(backend: Tokenizer, counts: Counter[str], limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, sorted; ties go to the lower."""
    normal: Counter[str] = Counter()
    for character, count in counts.items():
        for part in backend.normalizer.normalize_str(character):
            if not part.isspace():
                normal[part] += count
    ranked = sorted(normal, key=lambda character: (-normal[character], character))
    return sorted(ranked[:limit])


def may_continue(backend: Tokenizer, character: str) -> bool:
    """Whether a character can stand inside a word; punctuation and ideographs cannot."""
    normal = backend.normalizer.normalize_str(f"a{character}")
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)] == [normal]


def _texts(corpus: Examples, doing: str, progress: bool) -> Iterator[str]:
    bar = tqdm(
        total=corpus.num_bytes,
        desc=doing,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=not progress,
    )
    with bar:
        for example in corpus:
            yield example.text
            bar.update(corpus.bytes_read - bar.n)
