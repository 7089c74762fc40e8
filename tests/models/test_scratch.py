"""Encoders of random weights: of each shape, packed is padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import lines
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.core.errors import ConfigError
from maskery.data.corpus.config import CorpusConfig, VocabularyConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.vocabulary import train_tokenizer
from maskery.models.loading import SHAPES, new_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.text.config import TextRunConfig

PIECES = {"bert": "wordpiece", "modernbert": "bpe", "eurobert": "unigram"}


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_is_what_transformers_computes_on_padded_text(shape: str, tmp_path: Path) -> None:
    texts = lines(40)
    config = VocabularyConfig(vocab_size=320, tokenizer=PIECES.get(shape, "wordpiece"))  # type: ignore[arg-type]
    tokenizer = train_tokenizer(Corpus.of(texts, CorpusConfig()), config, progress=False)
    loaded = new_masked_lm("tiny", tokenizer, seed=0, shape=shape)
    assert loaded.model.config.model_type == shape
    with torch.no_grad():  # weights large enough for attention to tell positions apart
        for parameter in loaded.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    padded = tokenizer([*texts[:5], " ".join(texts[:20])[:1200]], padding=True, return_tensors="pt")
    loaded.model.save_pretrained(tmp_path)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    real = padded["attention_mask"].bool()
    with torch.no_grad():
        names = ("input_ids", "attention_mask")
        expected = theirs(**{name: padded[name] for name in names}).logits[real]
    ids, lengths = padded["input_ids"][real].numpy(), real.sum(dim=1).numpy()
    assert lengths[-1] > 128  # beyond ModernBERT's windows
    batch = TokenBatch(
        input_ids=ids,
        boundaries=np.concatenate(([0], np.cumsum(lengths))),
        example_ids=np.arange(len(lengths), dtype=np.uint64),
        starts=np.zeros(len(lengths), np.int64),
        word_starts=np.ones(len(ids), np.bool_),
    )
    everything = MaskedTokens(
        batch=batch, input_ids=ids, positions=np.arange(len(ids)), targets=ids
    )
    model = MaskedLanguageModel(loaded.model, packed=True, pad_token_id=tokenizer.pad_token_id)
    with torch.no_grad():
        found = model(model.lay_out(everything))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_a_bert_is_what_it_was() -> None:
    """The random weights of BERT do not depend on how its class is found."""
    tokenizer = train_tokenizer(
        Corpus.of(lines(20), CorpusConfig()), VocabularyConfig(vocab_size=100), progress=False
    )
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=512, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(7)
    expected = BertForMaskedLM(config)
    loaded = new_masked_lm("tiny", tokenizer, seed=7)
    found = loaded.model.state_dict()
    assert all(torch.equal(found[name], one) for name, one in expected.state_dict().items())
    assert all(name.startswith("cls.") for name in loaded.new_parameters)
    dropped = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    assert [getattr(loaded.model.config, name) for name in dropped] == [0.0, 0.0]


def test_an_unknown_shape_is_one_line() -> None:
    with pytest.raises(ConfigError, match="shape is 'modern': it must be one of bert, ro") as told:
        TextRunConfig(corpus=("x",), model="scratch:tiny", shape="modern")  # type: ignore[arg-type]
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match=r"--shape modernbert is of --model scratch:\.\.\."):
        TextRunConfig(corpus=("x",), shape="modernbert")
