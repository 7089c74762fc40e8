"""Both definitions against a plain implementation: one mask at a time, full logits, words by hand.

The plain one knows nothing of the package: its words come from splitting at spaces and punctuation,
its pieces from tokenising each word by itself, its logits from `BertForMaskedLM` as it is.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import WORDS, save_tiny_model
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from maskery.core.errors import DataError
from maskery.data.batching import cut_by_padded_size
from maskery.evaluation.text.fill import Filler
from maskery.evaluation.text.opening import OpenModel, open_model
from maskery.evaluation.text.pseudo_likelihood import Method, Scorer, score

SENTENCES = [
    "river",
    "the river stones, and harbours",
    "Lanterns thunder: the 42 meadows.",
    "copper violets and the quick brown foxes jump",
    "signal the signal the signal",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> OpenModel:
    return open_model(str(folder))


def plain_score(folder: Path, text: str, *, within_word: bool) -> list[tuple[str, list[float]]]:
    """Each word with the log-probabilities of its pieces, one forward pass a piece."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    words = re.findall(r"\w+|[^\w\s]", text)
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    scores: list[tuple[str, list[float]]] = []
    for index, word in enumerate(words):
        before = [piece for other in pieces[:index] for piece in other]
        after = [piece for other in pieces[index + 1 :] for piece in other]
        values = []
        for number, target in enumerate(pieces[index]):
            shown = list(pieces[index])
            shown[number] = tokenizer.mask_token_id
            if within_word:
                for later in range(number + 1, len(shown)):
                    shown[later] = tokenizer.mask_token_id
            row = [tokenizer.cls_token_id, *before, *shown, *after, tokenizer.sep_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([row])).logits[0, 1 + len(before) + number].double()
            values.append(float(logits.log_softmax(dim=-1)[target]))
        scores.append((word, values))
    return scores


@pytest.mark.parametrize("method", ["original", "within-word"])
@pytest.mark.parametrize("batch_tokens", [16, 4096])
def test_scores_are_those_of_the_plain_definition(
    folder: Path, opened: OpenModel, method: Method, batch_tokens: int
) -> None:
    scorer = Scorer(
        Filler(opened.model, opened.tokenizer), method=method, batch_tokens=batch_tokens
    )
    for text, own in zip(SENTENCES, scorer.score(SENTENCES), strict=True):
        expected = plain_score(folder, text, within_word=method == "within-word")
        assert own.text == text
        assert [word.word for word in own.words] == [word for word, _ in expected]
        for word, (_, values) in zip(own.words, expected, strict=True):
            assert word.piece_log_probabilities == pytest.approx(values, abs=1e-5)
            assert word.log_probability == pytest.approx(sum(values), abs=1e-5)
            assert text[word.start : word.end] == word.word
        flat = [value for _, values in expected for value in values]
        assert own.tokens == len(flat)
        assert own.log_probability == pytest.approx(sum(flat), abs=1e-5 * len(flat))


def test_the_definitions_differ_where_words_have_several_pieces(opened: OpenModel) -> None:
    both = [
        next(Scorer(Filler(opened.model, opened.tokenizer), method=method).score(["river foxes"]))
        for method in ("original", "within-word")
    ]
    (river, foxes), (river_too, foxes_too) = (score.words for score in both)
    assert len(river.pieces) == 1
    assert river.log_probability == pytest.approx(river_too.log_probability, abs=1e-6)
    assert len(foxes.pieces) > 1
    # The last piece is predicted from the same things under both.
    assert foxes.piece_log_probabilities[-1] == pytest.approx(
        foxes_too.piece_log_probabilities[-1], abs=1e-6
    )
    assert abs(foxes.log_probability - foxes_too.log_probability) > 1e-4


@given(
    st.lists(
        st.lists(st.sampled_from([*WORDS, "foxes", ",", "42"]), min_size=1, max_size=5).map(
            " ".join
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(8, 200),
)
@settings(max_examples=25)
def test_scores_depend_on_neither_neighbours_nor_batches(
    opened: OpenModel, texts: list[str], batch_tokens: int
) -> None:
    scorer = Scorer(Filler(opened.model, opened.tokenizer), batch_tokens=batch_tokens)
    together = [score.log_probability for score in scorer.score(texts)]
    alone = [next(scorer.score([text])).log_probability for text in texts]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_byte_level_tokenizer_and_positions_after_padding(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, "re", "red", "Ġred", "Ġt"]
    merges = [("r", "e"), ("re", "d"), ("Ġ", "red"), ("Ġ", "t")]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    text = "a red tree"
    (own,) = Scorer(Filler(opened.model, opened.tokenizer), method="original").score([text])
    assert [word.word for word in own.words] == ["a", "red", "tree"]
    assert own.words[1].pieces == ("Ġred",)
    ids = tokenizer(text)["input_ids"]
    model = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    expected = []
    for place in range(1, len(ids) - 1):
        row = list(ids)
        row[place] = tokenizer.mask_token_id
        with torch.no_grad():
            expected.append(
                float(model(torch.tensor([row])).logits[0, place].log_softmax(-1)[ids[place]])
            )
    flat = [value for word in own.words for value in word.piece_log_probabilities]
    assert flat == pytest.approx(expected, abs=1e-5)


def test_masks_in_a_text_stay_hidden_and_are_not_scored(folder: Path, opened: OpenModel) -> None:
    scorer = Scorer(Filler(opened.model, opened.tokenizer))
    (own,) = scorer.score(["the [MASK] stone"])
    assert [word.word for word in own.words] == ["the", "stone"]
    tokenizer = opened.tokenizer
    row = tokenizer("the [MASK] [MASK]")["input_ids"]
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([row])).logits[0, 3]
    expected = float(logits.log_softmax(-1)[tokenizer.convert_tokens_to_ids("stone")])
    assert own.words[1].log_probability == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [("  ", "text 2 .* no words"), ("river " * 40, "text 2 .* 42 tokens.* 32 positions")],
)
def test_texts_that_cannot_be_scored(opened: OpenModel, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(Scorer(Filler(opened.model, opened.tokenizer)).score(["river", text]))


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 60), st.integers(1, 9))
def test_batches_keep_order_and_budget(lengths: list[int], budget: int, most: int) -> None:
    cost = np.minimum(np.array(lengths, np.int64), budget)
    cuts = cut_by_padded_size(cost, budget, most).tolist()
    assert (cuts[0], cuts[-1]) == (0, len(lengths))
    for first, end in pairwise(cuts):
        batch = lengths[first:end]
        assert max(batch) * len(batch) <= budget or len(batch) == 1
        assert 1 <= len(batch) <= most


def test_sentences_are_scored_by_the_models_name(folder: Path, opened: OpenModel) -> None:
    expected = list(Scorer(Filler(opened.model, opened.tokenizer)).score(SENTENCES))
    assert score(folder, SENTENCES) == expected
    (alone,) = score(opened, SENTENCES[0])
    assert alone.log_probability == pytest.approx(expected[0].log_probability, abs=1e-5)
    original = Scorer(Filler(opened.model, opened.tokenizer), method="original").score(SENTENCES)
    assert score(opened, SENTENCES, method="original") == list(original)
