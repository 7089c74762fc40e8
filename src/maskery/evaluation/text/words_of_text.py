"""Cut a text into words and tokens, and tell which tokens can stand where a mask is.

Shapes: L tokens of a text, special tokens included; V vocabulary.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, pairwise

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Bools, Ints, Vocabulary
from maskery.data import tokenise
from maskery.data.batching import Template
from maskery.data.rows import PythonReader

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # of rare characters, in Unigram and SentencePiece models
CONTINUING, CONTINUED, WORD_END = "##", "@@", "</w>"


@dataclass(frozen=True, kw_only=True)
class Word:
    """One word, or punctuation mark, of a text."""

    text: str  # Its characters; of a word that is not found in the text, its tokens
    start: int  # Its first character in the text
    end: int  # One past its last character
    first: int  # Its first token
    last: int  # One past its last token


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """A text as a model reads it."""

    ids: Ints  # (L,) int64
    words: tuple[Word, ...]  # Special tokens in the text, such as `[MASK]`, belong to none


class TextReader:
    """Cut texts into words and tokens, and tell which tokens can stand in place of a mask."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.mask_token = str(tokenizer.mask_token)
        self.protected = Vocabulary.of(tokenizer).protected
        # A word that the tokenizer does not know is a word of the text all the same.
        self.special = self.protected.copy()
        if tokenizer.unk_token_id is not None:
            self.special[tokenizer.unk_token_id] = False
        self._template = Template.of(tokenizer)
        self._backend = tokenise.plain_backend(tokenizer, keep=self.mask_token)
        self._vocabulary = tokenizer.get_vocab()  # made anew at each call, in milliseconds
        self.space = ""  # the vocabulary's sign for the space before a word: "Ġ", "▁", or none
        if (backend := self._backend) is None:
            self._read_slowly = PythonReader(tokenizer, keep=self.mask_token)
            self.space = self._read_slowly.words.space
        else:
            byte_level = tokenise.is_byte_level(backend)
            self._always = tokenise.starts_word_table(backend.get_vocab(), byte_level)
            parts = f"{backend.normalizer}{backend.pre_tokenizer}{backend.decoder}"
            if byte_level or tokenise.METASPACE in parts:
                self.space = tokenise.BYTE_LEVEL_SPACE if byte_level else tokenise.METASPACE
        spelt_as_bytes = self.space == tokenise.BYTE_LEVEL_SPACE
        self._alphabet = tokenise.byte_level_alphabet() if spelt_as_bytes else {}

    def read(self, text: str) -> EncodedText:
        """Cut one text."""
        ids, starts, offsets = self.tokens(text)
        prefix, suffix = self._template.prefix, self._template.suffix
        skip = len(prefix)
        words = []
        for first, last in pairwise([*np.flatnonzero(starts).tolist(), len(ids)]):
            if self.special[ids[first:last]].any():
                continue
            end = offsets[last - 1][1]
            spelt = text[offsets[first][0] : end].lstrip()  # of some, with the space before it
            shown, start = spelt or "".join(self.pieces(ids[first:last])), end - len(spelt)
            word = Word(text=shown, start=start, end=end, first=first + skip, last=last + skip)
            words.append(word)
        whole = np.concatenate((prefix, ids, suffix)).astype(np.int64)
        return EncodedText(ids=whole, words=tuple(words))

    def pieces(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Return tokens as the vocabulary spells them."""
        return tuple(map(str, self.tokenizer.convert_ids_to_tokens([int(token) for token in ids])))

    def tokens(self, text: str) -> tuple[Ints, Bools, list[tuple[int, int]]]:
        """Return ids, word starts and character offsets, without the template's tokens."""
        if self._backend is None:
            ids, starts, offsets = self._read_slowly(text)
        else:
            encoding = self._backend.encode(text, add_special_tokens=False)
            ids, offsets = np.array(encoding.ids, np.int64), encoding.offsets
            starts = tokenise.word_starts(encoding, ids, self._always, text)
        special = self.special[ids]  # those that stand in the text are no part of a word
        starts = starts | special
        starts[1:] |= special[:-1]
        ids, kept = self._without_stray_spaces(text, ids, offsets)
        return ids[kept], starts[kept], list(compress(offsets, kept))

    def _without_stray_spaces(
        self, text: str, ids: Ints, offsets: list[tuple[int, int]]
    ) -> tuple[Ints, Bools]:
        """Remove spaces beside masks that no text has: returns ids (L,) and which stay (L,)."""
        # A word would have taken the space before it, and a tokenizer that puts a space before
        # every text takes what follows a mask for another text.
        ids, kept = ids.copy(), np.ones(len(ids), np.bool_)
        space = self._vocabulary.get(self.space, -1)
        for place in np.flatnonzero(ids == self.tokenizer.mask_token_id).tolist():
            if place and ids[place - 1] == space:
                kept[place - 1] = False
            end = offsets[place][1]
            # The mask's own end, since a mask may take the space after it.
            spaced = any(map(str.isspace, text[end - 1 : end + 1]))
            if place + 1 < len(ids) and not spaced:
                kept[place + 1] = ids[place + 1] != space
                ids[place + 1] = self.bare(int(ids[place + 1]))
        return ids, kept

    def bare(self, token: int) -> int:
        """Return the token without the space before it, or itself if there is no such token."""
        spelt = str(self.tokenizer.convert_ids_to_tokens(token))
        return int(self._vocabulary.get(spelt.removeprefix(self.space), token))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where the masks of a text start and end."""
        return [found.span() for found in re.finditer(re.escape(self.mask_token), text)]

    def offered(self, text: str, span: tuple[int, int], pieces: bool = False) -> torch.Tensor:
        """Return True for tokens that can stand alone in place of a mask, or all: (V,) bool."""
        if pieces:
            return torch.ones(len(self.special), dtype=torch.bool)
        left, right = text[: span[0]], text[span[1] :]
        control, inner, starts, ends, spaced = self._kinds
        allowed = ~control
        if not left.endswith(self.mask_token):
            if not left[-1:].isalnum():
                allowed &= ~inner
            # As the sentence has it: else a word would be listed twice, with two figures.
            has_space = left[-1:].isspace() or (not left and self._begins_with_space)
            allowed &= starts if has_space else ~spaced
        if not (right[:1].isalnum() or right.startswith(self.mask_token)):
            allowed &= ends
        return allowed

    def pieces_at(self, word: str, text: str, span: tuple[int, int]) -> list[int]:
        """Return the tokens of a word as it would stand in place of a mask."""
        start, end = span
        ids, _, offsets = self.tokens(text[:start] + word + text[end:])
        spaced, stop = text[:start][-1:].isspace(), start + len(word)
        first = start - spaced
        chosen = [i for i, (a, b) in enumerate(offsets) if first <= a and first < b <= stop]
        touched = [i for i, (a, b) in enumerate(offsets) if a < stop and start < b]
        if touched and set(touched) <= set(chosen):
            return [int(ids[i]) for i in chosen]
        # It would join the letters beside it, or is not found in the text: then by itself.
        found: list[int] = self.tokens(f" {word}" if spaced else word)[0].tolist()
        return [self.bare(found[0]), *found[1:]] if found and start and not spaced else found

    def fill(self, text: str, tokens: Sequence[int]) -> str:
        """Return a text with its masks filled, and nothing else changed."""
        space, filled, done = self.space, "", 0
        for place, ((start, end), token) in enumerate(zip(self.spans(text), tokens, strict=True)):
            filled += text[done:start]
            word, in_a_row, done = spoken(self.tokenizer, token), start == done, end
            pair = self.tokenizer.decode(tokens[max(0, place - 1) : place + 1]).strip()
            if in_a_row and not space and " " in pair and not tokenise.begins_unspaced(word):
                filled += " "  # two masks in a row are two words
            if filled and not filled[-1].isspace():  # it joins what stands before it
                spelt = str(self.tokenizer.convert_ids_to_tokens(token))
                spaced = f" {word}" if spelt.startswith(space) else word
                word = spaced if space else word.removeprefix(CONTINUING)
            filled += word
        return filled + text[done:]

    @cached_property
    def _begins_with_space(self) -> bool:
        """True if the first word of a text has a space before it, as the vocabulary writes it."""
        first = self.pieces(self.tokens("a")[0][:1])
        return bool(self.space) and "".join(first).startswith(self.space)

    @cached_property
    def _kinds(self) -> tuple[torch.Tensor, ...]:
        """Return (V,) bool: control, within a word, may follow a space, may end a word, spaced."""
        spelt = self.pieces(range(len(self.special)))
        marks_ends = any(token.endswith(WORD_END) for token in spelt)
        columns = zip(*(self._kind(token, marks_ends) for token in spelt), strict=True)
        return torch.from_numpy(self.protected), *(torch.tensor(column) for column in columns)

    def _kind(self, token: str, marks_ends: bool) -> tuple[bool, bool, bool, bool]:
        space = self.space
        if space:
            text = self._text(token.removeprefix(space))
            spaced = token.startswith(space) or not text[:1].isalnum()
            return not text, spaced or tokenise.begins_unspaced(text), True, token.startswith(space)
        within = token.startswith(CONTINUING) and token != CONTINUING
        ends = not (token.endswith(CONTINUED) and token != CONTINUED)
        return within, True, token.endswith(WORD_END) if marks_ends else ends, False

    def _text(self, token: str) -> str:
        """Return a token without its space as text; "" if it is a part of a character or none."""
        if not self._alphabet:
            return "" if BYTE.fullmatch(token) else token
        try:
            return bytes(self._alphabet.get(letter, 0xFF) for letter in token).decode("utf-8")
        except UnicodeDecodeError:
            return ""


def spoken(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token as text; its spelling where it decodes to nothing, such as a lone space."""
    return tokenizer.decode([token]).strip() or str(tokenizer.convert_ids_to_tokens(token))
