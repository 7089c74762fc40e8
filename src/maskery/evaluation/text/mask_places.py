"""Which tokens can stand where a mask is, how a word is cut there, and how it is written there.

Shapes: V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from maskery.data.tokenise import BYTE_LEVEL_SPACE, byte_level_alphabet
from maskery.evaluation.text.words_of_text import TextReader

# Words of these scripts follow each other without a space: Thai, Lao, Burmese, Khmer, kana, Han.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
CONTINUING, CONTINUED, WORD_END = "##", "@@", "</w>"


class MaskPlaces:
    """The masks of texts, for one vocabulary."""

    def __init__(self, reader: TextReader) -> None:
        self.reader, self.tokenizer = reader, reader.tokenizer
        self.mask = re.compile(re.escape(reader.mask_token))
        self._alphabet = byte_level_alphabet() if reader.space == BYTE_LEVEL_SPACE else {}

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where the masks of a text start and end."""
        return [found.span() for found in self.mask.finditer(text)]

    def offered(self, text: str, span: tuple[int, int], pieces: bool = False) -> torch.Tensor:
        """Return True for tokens that can stand alone in place of a mask, or all: (V,) bool."""
        if pieces:
            return torch.ones(len(self.reader.special), dtype=torch.bool)
        left, right = text[: span[0]], text[span[1] :]
        control, inner, starts, ends = self._kinds
        allowed = ~control
        if not (left[-1:].isalnum() or left.endswith(self.reader.mask_token)):
            allowed &= ~inner
            # After a bracket or a hyphen, a word begins without a space.
            if left[-1:].isspace() or (not left and self._begins_with_space):
                allowed &= starts
        if not (right[:1].isalnum() or right.startswith(self.reader.mask_token)):
            allowed &= ends
        return allowed

    def pieces(self, word: str, text: str, span: tuple[int, int]) -> list[int]:
        """Return the tokens of a word as it would stand in place of a mask."""
        start, end = span
        ids, _, offsets = self.reader.tokens(text[:start] + word + text[end:])
        spaced, stop = text[:start][-1:].isspace(), start + len(word)
        first = start - spaced
        chosen = [i for i, (a, b) in enumerate(offsets) if first <= a and first < b <= stop]
        touched = [i for i, (a, b) in enumerate(offsets) if a < stop and start < b]
        if touched and set(touched) <= set(chosen):
            return [int(ids[i]) for i in chosen]
        # It would join the letters beside it, or the tokenizer keeps no offsets: then by itself.
        found: list[int] = self.reader.tokens(f" {word}" if spaced else word)[0].tolist()
        return [self.reader.bare(found[0]), *found[1:]] if found and start and not spaced else found

    def fill(self, text: str, tokens: Sequence[int]) -> str:
        """Return a text with its masks filled, and nothing else changed."""
        parts, done = [], 0
        for (start, end), token in zip(self.spans(text), tokens, strict=True):
            parts.append(text[done:start])
            parts.append(self._written(token, "".join(parts)))
            done = end
        return "".join([*parts, text[done:]])

    def _written(self, token: int, left: str) -> str:
        """Return a token as text that follows `left`."""
        spelt = str(self.tokenizer.convert_ids_to_tokens(token))
        word = spoken(self.tokenizer, token)
        if not left or left[-1].isspace():
            return word
        if self.reader.space and spelt.startswith(self.reader.space):
            return f" {word}"
        return word if self.reader.space else word.removeprefix(CONTINUING)

    @cached_property
    def _begins_with_space(self) -> bool:
        """True if the first word of a text has a space before it, as the vocabulary writes it."""
        first = self.reader.pieces(self.reader.tokens("a")[0][:1])
        return bool(self.reader.space) and "".join(first).startswith(self.reader.space)

    @cached_property
    def _kinds(self) -> tuple[torch.Tensor, ...]:
        """Return (V,) bool: control tokens, within a word, may follow a space, may end a word."""
        spelt = self.reader.pieces(range(len(self.reader.special)))
        marks_ends = any(token.endswith(WORD_END) for token in spelt)
        control = torch.from_numpy(self.reader.special).clone()
        if self.tokenizer.unk_token_id is not None:
            control[self.tokenizer.unk_token_id] = True
        columns = zip(*(self._kind(token, marks_ends) for token in spelt), strict=True)
        return control, *(torch.tensor(column) for column in columns)

    def _kind(self, token: str, marks_ends: bool) -> tuple[bool, bool, bool]:
        space = self.reader.space
        if space:
            text = self._text(token.removeprefix(space))
            spaced = token.startswith(space) or not text[:1].isalnum()
            return not text, spaced or bool(UNSPACED.match(text)), True
        within = token.startswith(CONTINUING) and token != CONTINUING
        ends = not (token.endswith(CONTINUED) and token != CONTINUED)
        return within, True, token.endswith(WORD_END) if marks_ends else ends

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
