"""Tokenizers of five kinds over a few words, spelled out, with their special tokens."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,()[]<>/ü")
WORDS = ["Paris", "Rome", "The", "the", "capital", "of", "France", "is"]
KINDS = ("wordpiece", "byte-level", "byte-level with prefix", "unigram", "end of word")


def make(kind: str, *, lstrip: bool = False) -> PreTrainedTokenizerBase:
    """Make a tokenizer of one of `KINDS`."""
    if kind == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces = [*special, *LETTERS, *(f"##{x}" for x in LETTERS), *WORDS]
        vocab = {piece: index for index, piece in enumerate(pieces)}
        return BertTokenizer(vocab=vocab, do_lower_case=False)
    backend = {"unigram": _unigram, "end of word": _end_of_word}.get(kind, _byte_level)(kind)
    mask = AddedToken("<mask>", lstrip=lstrip, special=True)
    backend.add_special_tokens([*SPECIAL, mask])
    names = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", None, names)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=mask,
    )


def _byte_level(kind: str) -> Tokenizer:
    starts = [*pre_tokenizers.ByteLevel.alphabet(), *SPECIAL]
    spelled = [*map(list, WORDS), *(["Ġ", word] for word in WORDS)]
    backend = Tokenizer(_merged(starts, spelled))
    prefix = kind.endswith("prefix")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    return backend


def _end_of_word(kind: str) -> Tokenizer:
    del kind
    ends = [f"{letter}</w>" for letter in LETTERS]
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in WORDS]
    model = _merged([*SPECIAL, *LETTERS, *ends], spelled, unk="<unk>", end="</w>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    return backend


def _merged(
    starts: list[str], words: list[list[str]], unk: str | None = None, end: str = ""
) -> models.BPE:
    """Merge each word from left to right."""
    vocab = {piece: index for index, piece in enumerate(starts)}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        left = word[0]
        for letter in word[1:]:
            merges[left, letter] = None
            left += letter
            vocab.setdefault(left, len(vocab))
    unknown = {"unk_token": unk, "end_of_word_suffix": end} if unk else {}
    return models.BPE(vocab, list(merges), **unknown)


def _unigram(kind: str) -> Tokenizer:
    del kind
    pieces = [(name, 0.0) for name in SPECIAL] + [("▁", -3.0)]
    pieces += [(letter, -6.0) for letter in LETTERS]
    pieces += [(word, -5.0) for word in WORDS] + [(f"▁{word}", -5.0) for word in WORDS]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend
