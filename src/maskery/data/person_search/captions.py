"""Caption cleaning as RaSa's released code does it (Bai et al., IJCAI 2023)."""

from __future__ import annotations

DROPPED = str.maketrans("", "", ",.'!?\"()*#:;~")
SPLITTING = str.maketrans("-/", "  ")


def clean_caption(caption: str, max_words: int = 50) -> str:
    """Lower-case a caption, drop its punctuation and cut it.

    Hyphens and slashes separate words, `<person>` becomes `person`, and runs of white space become
    one space.

    Args:
        caption: As annotated.
        max_words: The most words that stay.
    """
    text = caption.lower().translate(DROPPED).translate(SPLITTING)
    return " ".join(text.replace("<person>", "person").split()[:max_words])
