"""Small folders of token shards."""

from __future__ import annotations

from pathlib import Path

from tiny_text import WORDS
from transformers import BertTokenizer

from maskery.data.corpus.config import CorpusConfig, ShardingConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.making import Made, make_shards


def word_tokenizer() -> BertTokenizer:
    """One token for each word of `tiny_text.lines`, and one for each digit."""
    digits = [*"0123456789", *(f"##{d}" for d in "0123456789")]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "number", ".", *digits]
    return BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=64)


def shard(corpus: Path | list[Path], folder: Path, **changes: object) -> Made:
    """Make shards of about a thousand bytes of text in this process."""
    reading = changes.pop("reading", CorpusConfig())
    settings = {"shard_mb": 0.001, "held_out_share": 0.1, "workers": 1, **changes}
    sources = [str(path) for path in (corpus if isinstance(corpus, list) else [corpus])]
    return make_shards(
        Corpus.open(sources, reading),  # type: ignore[arg-type]
        word_tokenizer(),
        folder,
        ShardingConfig(**settings),  # type: ignore[arg-type]
        progress=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
