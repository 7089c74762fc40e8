"""Training a WordPiece tokenizer on a corpus, for models from scratch."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import BertTokenizer, PreTrainedTokenizerBase

from maskery.data.tokenise import Examples

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_wordpiece(
    corpus: Examples, vocab_size: int, *, progress: bool = True
) -> PreTrainedTokenizerBase:
    """Learn a lower-casing WordPiece vocabulary of at most `vocab_size` pieces.

    The result depends on the corpus alone, so a repeated run gets the same tokenizer.
    """
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False
    )

    def texts() -> Iterator[str]:
        bar = tqdm(
            total=corpus.num_bytes,
            desc="learning a vocabulary",
            unit="B",
            unit_scale=True,
            leave=False,
            disable=not progress,
        )
        with bar:
            for example in corpus:
                yield example.text
                bar.update(corpus.bytes_read - bar.n)

    backend.train_from_iterator(texts(), trainer)
    return BertTokenizer(vocab=backend.get_vocab(), model_max_length=512)
