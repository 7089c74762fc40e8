"""A corpus format of one's own: sentences of CoNLL-U treebanks, as Universal Dependencies has them.

maskery train text en_ewt-ud-train.conllu --reader conllu_reader.py:read_conllu --model minilm
maskery inspect 'treebanks/*.conllu.gz' --reader conllu_reader.py:read_conllu
python conllu_reader.py en_ewt-ud-train.conllu

Packed files, encodings, the ids of examples and messages are Maskery's affair.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain

FORM, MISC = 1, 9
TEXT = "# text = "


def read_conllu(file: Iterable[str]) -> Iterator[str]:
    """Yield the sentences of a .conllu file.

    Args:
        file: Its lines: an open file, or any other iterable of them.
    """
    text, words = "", list[str]()
    for line in chain(file, ["\n"]):
        if line.startswith(TEXT):
            text = line[len(TEXT) :]
        elif line.strip() and not line.startswith("#"):
            words.append(line)
        elif not line.strip():  # a blank line ends a sentence
            if text or words:
                yield text or joined(words)
            text, words = "", []


# Of the files in a folder, those that end so are read.
read_conllu.suffixes = (".conllu",)  # type: ignore[attr-defined]


def joined(lines: list[str]) -> str:
    """Return the words of a sentence with the spaces that stood between them."""
    text, last_of_token = "", 0
    for columns in (line.rstrip("\n").split("\t") for line in lines):
        first, _, last = columns[0].partition("-")
        if "." in first or int(first) <= last_of_token:
            continue  # a word that is not written, or a part of a token such as "don't"
        last_of_token = int(last or first)
        text += columns[FORM] + ("" if "SpaceAfter=No" in columns[MISC].split("|") else " ")
    return text


def main() -> None:
    """Show the sentences of some treebanks, read as a training run reads them."""
    from maskery.data.corpus.formats import register
    from maskery.data.corpus.reader import Corpus

    register(".conllu", read_conllu)
    for example in Corpus.open(sys.argv[1:]):
        print(example.text)


if __name__ == "__main__":
    main()
