"""Words where none are marked by spaces; the cuts expected were made by hand."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from transformers import PreTrainedTokenizer

from maskery.data.batching import Template, assemble
from maskery.data.corpus.config import VocabularyConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.tokenise import (
    break_long_words,
    encode_texts,
    is_unspaced,
    segmenter,
    word_numbers,
)
from maskery.data.vocabulary import train_tokenizer
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker

# By script: words, and what stands between them.
SCRIPTS = {
    "thai": ("ภาษา ไทย เขียน ติด กัน โดย ไม่มี ช่อง ว่าง ระหว่าง คำ เรา อ่าน หนังสือ ทุก วัน", ""),
    "lao": ("ພາສາ ລາວ ຂຽນ ໂດຍ ບໍ່ມີ ຊ່ອງຫວ່າງ ຂ້ອຍ ກິນ ເຂົ້າ ຢູ່ ບ້ານ ມື້ນີ້ ດີ ຫຼາຍ", ""),
    "khmer": ("ភាសាខ្មែរ សរសេរ ដោយ គ្មាន ចន្លោះ ខ្ញុំ ញ៉ាំ បាយ នៅ ផ្ទះ ថ្ងៃនេះ ល្អ ណាស់", ""),
    "burmese": ("မြန်မာ စကား ကို ရေး သည် စာအုပ် ဖတ် ပါ ကျောင်း သွား နေ ကောင်း", ""),
    "kana": ("きょう は いい てんき です ね コンピュータ を つかって あした も たのしい", ""),
    "chinese": ("我们 今天 去 公园 看 熊猫 因为 天气 很好 他们 喜欢 学习 语言 朋友", ""),
    "hindi": ("भारत में हिंदी बोली जाती है और लोग किताबें पढ़ते हैं आज मौसम अच्छा", " "),
    "arabic": ("اللغة العربية تكتب من اليمين إلى اليسار ونحن نقرأ الكتب كل يوم في البيت", " "),
    "english": ("the philosophers were writing about language and read unbelievable books", " "),
}


def texts_of(script: str) -> list[str]:
    """Return some rows of a hundred words, repeated at random."""
    words, between = SCRIPTS[script]
    chosen = np.random.default_rng(7).choice(words.split(), (24, 100))
    return [between.join(row) for row in chosen]


@pytest.fixture(params=["segmenter", "pieces"])
def extra(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    segmenter.cache_clear()
    if request.param == "pieces":
        monkeypatch.setitem(sys.modules, "icu4py", None)
        monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    yield request.param
    segmenter.cache_clear()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_words_are_masked_at_the_rate_and_no_row_whole(script: str, kind: str, extra: str) -> None:
    texts = texts_of(script)
    config = VocabularyConfig(vocab_size=420, tokenizer=kind)  # type: ignore[arg-type]
    tokenizer = train_tokenizer(Corpus.of(texts), config, progress=False)
    ids, starts, lengths = encode_texts(texts, tokenizer)
    firsts = np.cumsum(lengths) - lengths
    names, begin = np.arange(len(texts)).astype(np.uint64), np.zeros(len(texts), np.int64)
    batch = assemble(ids, starts, firsts, lengths, names, begin, Template.of(tokenizer))
    masker = Masker.of(tokenizer, MaskingConfig(policy="word", mask_rate=0.15))
    shares = []
    for epoch in range(40):
        positions = masker.mask(batch, epoch=epoch).positions
        rows = np.searchsorted(batch.boundaries, positions, side="right") - 1
        shares.append(np.bincount(rows, minlength=len(texts)) / lengths)
    assert 0.13 < np.mean(shares) < 0.17
    assert np.max(shares) < 0.6


def test_the_dictionary_cuts_where_a_reader_does() -> None:
    text = "ภาษาไทยเขียน and 我们今天去公园!"
    numbers, inside = word_numbers(text, is_unspaced(text)), is_unspaced(text)
    starts = [n for n in range(len(text)) if inside[n] and (not inside[n - 1] or numbers[n] == n)]
    words = ["ภาษา", "ไทย", "เขียน", "我们", "今天", "去", "公园"]
    assert starts == [text.index(word) for word in words]


def test_without_the_extra_one_line_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    segmenter.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert word_numbers("ภาษา", is_unspaced("ภาษา")).tolist() == [0, 1, 2, 3]
    segmenter.cache_clear()
    assert [record.message for record in caplog.records] == [
        "the text holds scripts without spaces, in which each token counts as a word; for their "
        "words: pip install 'maskery[words]'"
    ]


def test_a_text_of_one_word_and_a_word_of_a_line_are_masked_piece_by_piece() -> None:
    one = np.array([True, *[False] * 8])
    assert break_long_words(one).all()
    assert break_long_words(one[:8]).sum() == 1
    two = np.zeros(100, np.bool_)
    two[[0, 10]] = True
    assert break_long_words(two).tolist() == [True, *[False] * 9, *[True] * 90]


def test_tokenizers_in_python_know_their_words_by_marks() -> None:
    class Marked(PreTrainedTokenizer):
        def __init__(self, vocab: dict[str, int]) -> None:
            self.known = vocab
            super().__init__(unk_token="[UNK]")

        @property
        def vocab_size(self) -> int:
            return len(self.known)

        def get_vocab(self) -> dict[str, int]:
            return self.known

        def _tokenize(self, text: str) -> list[str]:
            return text.split()

        def _convert_token_to_id(self, token: str) -> int:
            return self.known[token]

        def _convert_id_to_token(self, index: int) -> str:
            return list(self.known)[index]

    def starts(pieces: str) -> list[bool]:
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces.split())]
        tokenizer = Marked({token: n for n, token in enumerate(tokens)})
        return encode_texts([pieces], tokenizer)[1].tolist()

    assert starts("play ##ing cat ##s") == [True, False, True, False]
    assert starts("play@@ ing cat@@ s") == [True, False, True, False]
    assert starts("▁play ing ▁cat s") == [True, False, True, False]
