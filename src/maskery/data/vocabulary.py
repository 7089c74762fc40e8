"""Learn a tokenizer from a corpus: WordPiece, byte-level BPE or Unigram.

Text is brought into Unicode's composed form (NFC) and is otherwise left as it is: marks and case
carry the words of most scripts, so folding them is a choice. The pieces depend on the corpus alone,
so a repeated run gets the same tokenizer.
"""

import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from maskery.core.bars import byte_bar
from maskery.core.errors import ModelError
from maskery.core.system import replace_folder
from maskery.data.corpus.config import VocabularyConfig
from maskery.data.corpus.reader import Corpus

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONTINUING = "##"
# WordPiece leaves rarer characters to [UNK]; the trainer's own default.
MAX_ALPHABET = 1000
# WordPiece looks for every piece among all ends of its word: at 100 characters that takes 0.2 ms,
# at 4000 seconds. A longer run of characters is cut here, into words of their own.
MAX_WORD_CHARS = 100
# Unigram's scores are sums in the order of a hash table: from run to run the 14th digit differs.
SCORE_DIGITS = 6
NUM_BYTES = 256
# GPT-2's cuts between letters, digits and other characters, where a mark belongs to its letter and
# a joiner to what it joins: else Hindi is cut at each vowel sign, and families of emoji apart.
BYTE_LEVEL_WORDS = (
    r" ?\p{L}[\p{L}\p{M}\x{200C}\x{200D}]*| ?\p{N}[\p{N}\p{M}]*| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
# WordPiece keeps no spaces, and decodes with one between any two words; prose has none here.
UNWRITTEN_SPACES = (
    r" (?=[\p{M}\x{200C}\x{200D}\p{Pe}’”›,.;:!?…।॥۔،؛؟׃、。，．：；？！])"
    r"|(?<=[\p{Ps}‘¿¡]) "
    # Turkish writes it before a number.
    r"|(?<=\p{N}) (?=%)|(?<=[^\p{N} ] %) (?=\p{N})|(?<=^%) (?=\p{N})"
    # “ opens in English and closes in German.
    r"|(?<=“) (?=[^“„]*”)| (?=“(?![^“„]*”))"
    # Every other straight quote closes, counted from the end, and so does every other of «».
    r"|(?<=\") (?=[^\"]*\"(?:[^\"]*\"[^\"]*\")*[^\"]*$)| (?=\"(?:[^\"]*\"[^\"]*\")*[^\"]*$)"
    r"|(?<=[«»]) (?=[^«»]*[«»](?:[^«»]*[«»][^«»]*[«»])*[^«»]*$)"
    r"| (?=[«»](?:[^«»]*[«»][^«»]*[«»])*[^«»]*$)"
    # Within words and numbers.
    r"|(?<=[\p{L}\p{M}\p{N}]) (?=[-'’־׳״/@_] [\p{L}\p{N}])(?!'[^']*'(?: \P{L}|$))"
    r"|(?<=[\p{L}\p{M}\p{N}] [-־׳״/@_]) (?=[\p{L}\p{N}])|(?<=') (?=\p{L})"
    r"|(?<=\p{L} ’) (?=\p{L}{1,2}(?![\p{L}\p{M}]))"
    r"| (?='(?: \P{L}|$))|(?<=\p{N} [.,:]) (?=\p{N})"
    r"|(?<=[\p{Han}\p{Hiragana}\p{Katakana}ー、。，．：；？！]) "
    r"| (?=[\p{Han}\p{Hiragana}\p{Katakana}ー])"
)

Texts = Callable[[str], Iterator[str]]


def learnt_tokenizer(
    corpus: Corpus, config: VocabularyConfig, kept: Path | None, *, progress: bool = True
) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a run keeps in a folder, or learn one and keep it there."""
    # Learnt again, it might weigh its pieces differently, and the run could not be resumed.
    if kept is not None and kept.is_dir():
        try:
            return AutoTokenizer.from_pretrained(kept, trust_remote_code=False)
        except (OSError, ValueError) as error:
            fix = "start afresh with another --output"
            raise ModelError(f"the tokenizer in '{kept}' is damaged; {fix}") from error
    tokenizer = train_tokenizer(corpus, config, progress=progress)
    # The folder of a finished run may be one that is only read.
    if kept is not None and os.access(kept.parent, os.W_OK):
        partial = kept.with_name(f"{kept.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save_pretrained(partial)
        replace_folder(partial, kept)
    return tokenizer


def train_tokenizer(
    corpus: Corpus, config: VocabularyConfig, *, progress: bool = True
) -> PreTrainedTokenizerBase:
    """Learn the pieces of a corpus, at most `config.vocab_size`."""

    def texts(doing: str) -> Iterator[str]:
        with byte_bar(corpus.num_bytes, doing, progress) as bar:
            for example in corpus:
                yield example.text
                bar.update(corpus.bytes_read - bar.n)

    if config.tokenizer == "bert-uncased":
        from transformers import BertTokenizer

        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        vocabulary = _train_pieces(backend, config, texts).get_vocab()
        return BertTokenizer(vocab=vocabulary, model_max_length=512)
    # NFC, after the folding that was asked for.
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if config.lowercase else []
    if config.strip_accents:
        steps += [normalizers.NFD(), normalizers.StripAccents()]
    normalizer = normalizers.Sequence([*steps, normalizers.NFC()])
    backend = _LEARN[config.tokenizer](config, normalizer, texts)
    ends = [(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    roles = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **roles, model_max_length=512, clean_up_tokenization_spaces=False
    )


def _special(strip: bool = False) -> list[AddedToken]:
    """Return the special tokens; the mask takes a space before it where words have theirs."""
    return [AddedToken(t, special=True, lstrip=strip and t == "[MASK]") for t in SPECIAL]


def _learn_wordpiece(config: VocabularyConfig, normalizer: Any, texts: Texts) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizer
    # Ideographs are too many for pieces of several; an unknown one makes its whole sentence so.
    single = pre_tokenizers.Split(Regex(rf"\p{{Han}}|.{{{MAX_WORD_CHARS}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), single])
    unwritten = decoders.Replace(Regex(UNWRITTEN_SPACES), "")
    words = decoders.WordPiece(CONTINUING, cleanup=False)
    backend.decoder = decoders.Sequence([words, decoders.Fuse(), unwritten])
    return _train_pieces(backend, config, texts)


def _train_pieces(backend: Tokenizer, config: VocabularyConfig, texts: Texts) -> Tokenizer:
    """Learn the vocabulary of a WordPiece tokenizer in place, and return it."""
    # Each character may need two pieces: one that starts a word and one that continues it.
    limit = min(MAX_ALPHABET, (config.vocab_size - len(SPECIAL)) // 2)
    alphabet = alphabet_of(backend, texts("reading the alphabet"), limit)

    def may_continue(character: str) -> bool:  # punctuation and ideographs cannot
        word = backend.normalizer.normalize_str(f"a{character}")
        return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(word)] == [word]

    trainer = WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=_special() + [CONTINUING + c for c in alphabet if may_continue(c)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(texts("learning a vocabulary"), trainer)
    # The trainer takes the characters' pieces for special tokens, which are cut out of any text.
    described = json.loads(backend.to_str())
    described["added_tokens"] = described["added_tokens"][: len(SPECIAL)]
    return Tokenizer.from_str(json.dumps(described))


def _learn_bpe(config: VocabularyConfig, normalizer: Any, texts: Texts) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    words = pre_tokenizers.Split(Regex(BYTE_LEVEL_WORDS), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=_special(strip=True),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts("learning a vocabulary"), trainer)
    return backend


def _learn_unigram(config: VocabularyConfig, normalizer: Any, texts: Texts) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizer
    # Before the first word as before any other, but not after a mask that has none.
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    room = config.vocab_size - NUM_BYTES
    # The trainer keeps every character that it sees, so rarer ones are left to bytes.
    alphabet = alphabet_of(backend, texts("reading the alphabet"), (room - len(SPECIAL)) // 2)
    rare = re.compile(f"[^\\s{re.escape(''.join(alphabet))}]+")
    read = map(normalizer.normalize_str, texts("learning a vocabulary"))
    known = (rare.sub(" ", text) for text in read)
    trainer = UnigramTrainer(
        vocab_size=room, special_tokens=_special(strip=True), unk_token="[UNK]", show_progress=False
    )
    backend.train_from_iterator(known, trainer)
    pieces = json.loads(backend.to_str())["model"]["vocab"][len(SPECIAL) :]
    scored = sorted((-round(score, SCORE_DIGITS), piece) for piece, score in pieces)
    # After all pieces: bytes are for what no piece is there for.
    least = scored[-1][0] + 1.0 if scored else 1.0
    scored += [(least, f"<0x{byte:02X}>") for byte in range(NUM_BYTES)]
    vocabulary = [(token, 0.0) for token in SPECIAL] + [(piece, -score) for score, piece in scored]
    backend.model = models.Unigram(vocabulary, unk_id=1, byte_fallback=True)
    parts = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    backend.decoder = decoders.Sequence(parts)
    return backend


_LEARN = {"wordpiece": _learn_wordpiece, "bpe": _learn_bpe, "unigram": _learn_unigram}


def alphabet_of(backend: Tokenizer, texts: Iterable[str], limit: int) -> list[str]:
    """Return the `limit` most frequent normalised characters, sorted; ties go to the lower."""
    # The trainers number characters in the order of a randomly seeded hash table, and break ties by
    # those numbers. So that a repeated run gets the same, they are told the alphabet beforehand.
    counts = Counter(chain.from_iterable(unicodedata.normalize("NFC", text) for text in texts))
    normal: Counter[str] = Counter()
    for character, count in counts.items():
        for part in backend.normalizer.normalize_str(character):
            if not part.isspace():
                normal[part] += count
    ranked = sorted(normal, key=lambda character: (-normal[character], character))
    return sorted(ranked[:limit])
